//! A bounded buffer between the reader of a pipe and the writer of a file on a disk that may be slow. Output that does
//! not fit is dropped and counted, and so is all output after it until the buffer has been taken.

use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// How much may wait for a disk that is slow, in bytes.
const CAPACITY: usize = 1 << 20;

#[derive(Default)]
pub(super) struct BoundedBuffer {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// The buffered bytes, and how many were dropped after them.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) bytes: Vec<u8>,
    pub(super) dropped: u64,
    /// Whether nothing more comes.
    closed: bool,
}

impl BoundedBuffer {
    /// Takes a chunk, or counts it. Never waits for the disk.
    pub(super) fn push(&self, chunk: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.dropped == 0 && waiting.bytes.len() + chunk.len() <= CAPACITY {
            waiting.bytes.extend_from_slice(chunk);
        } else {
            waiting.dropped += chunk.len() as u64;
        }
        self.changed.notify_one();
    }

    /// Nothing more comes.
    pub(super) fn close(&self) {
        self.waiting().closed = true;
        self.changed.notify_one();
    }

    /// Waits for something to write; `None` if nothing more comes.
    pub(super) fn take(&self) -> Option<Waiting> {
        let mut waiting = self.waiting();
        while waiting.bytes.is_empty() && waiting.dropped == 0 {
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let closed = waiting.closed;
        Some(mem::replace(&mut waiting, Waiting { closed, ..Waiting::default() }))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted_where_it_would_have_been() {
        let bounded_buffer = BoundedBuffer::default();
        (0..1000).for_each(|_| bounded_buffer.push(b"a short line\n"));
        assert_eq!(
            bounded_buffer.take().map(|taken| (taken.bytes.len(), taken.dropped)),
            Some((13_000, 0)),
            "however many"
        );
        bounded_buffer.push(&vec![b'x'; CAPACITY - 1]);
        bounded_buffer.push(b"ab");
        bounded_buffer.push(b"c");
        assert_eq!(bounded_buffer.take().map(|taken| (taken.bytes.len(), taken.dropped)), Some((CAPACITY - 1, 3)));
        bounded_buffer.push(b"d");
        bounded_buffer.close();
        assert_eq!(bounded_buffer.take().map(|taken| (taken.bytes, taken.dropped)), Some((b"d".to_vec(), 0)));
        assert!(bounded_buffer.take().is_none());
    }
}
