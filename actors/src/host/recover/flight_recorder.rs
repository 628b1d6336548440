//! The flight recorder: the last runs of each program, in memory that survives this process.
//!
//! gaggled may be killed after a process was created or reaped, and before the journal records it. So the child itself
//! records its process id before it executes its command, and the reaper records a status before it reaps. Both write
//! to a memory file that the subreaper holds, with one system call that never blocks. The next daemon reads from it
//! what the journal lacks.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::FileExt,
    },
};

use gaggled_core::{
    base::ids::{DenseId, EpochId, InstanceId, ProgramId},
    process::ExitStatus,
};

/// The memory file, or nothing if there is no subreaper to hold one.
#[derive(Debug, Default)]
pub struct Recorder(Option<File>);

/// The size of the header, and of each slot. Every program has two, which its runs take in turn: when one run follows
/// another at once, the journal may lack both the end of the first and the start of the second.
const SLOT: usize = 32;

/// What is known of a run of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunSlot {
    /// The run.
    pub instance: InstanceId,
    /// Its process id.
    pub pid: i32,
    /// How it has ended, if it has.
    pub ended: Option<ExitStatus>,
}

/// A slot as it is written.
pub(crate) type SlotBytes = [u8; SLOT];

impl Recorder {
    /// The recorder in this memory file.
    pub fn new(file: Option<File>) -> Self {
        Self(file)
    }

    /// Everything that the daemon of this epoch has recorded: the last two runs of each program, the earlier one first.
    /// `None` if there are no records of that daemon.
    pub fn read(&self, epoch: EpochId) -> Option<Vec<Vec<RunSlot>>> {
        let file = self.0.as_ref()?;
        let mut header = [0; SLOT];
        file.read_exact_at(&mut header, 0).ok()?;
        if header.get(..8) != Some(epoch.0.to_le_bytes().as_slice()) {
            return None;
        }
        let size = file.metadata().map_or(0, |found| found.len());
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0).saturating_sub(SLOT)];
        file.read_exact_at(&mut bytes, SLOT as u64).ok()?;
        let runs = |pair: &[u8]| {
            let mut runs: Vec<RunSlot> = pair.chunks_exact(SLOT).filter_map(RunSlot::decode).collect();
            runs.sort_by_key(|slot| slot.instance);
            runs
        };
        Some(bytes.chunks_exact(2 * SLOT).map(runs).collect())
    }

    /// Forgets everything and begins anew, for so many programs.
    pub fn reset(&self, epoch: EpochId, programs: usize) -> io::Result<()> {
        let Some(file) = &self.0 else { return Ok(()) };
        let mut header = [0; SLOT];
        header[..8].copy_from_slice(&epoch.0.to_le_bytes());
        file.set_len(0)?;
        file.set_len((SLOT * (2 * programs + 1)) as u64)?;
        file.write_all_at(&header, 0)
    }

    /// Where the slot of a run is, for a child that writes it itself.
    pub(crate) fn place(&self, program: ProgramId, instance: InstanceId) -> Option<(RawFd, i64)> {
        let turn = usize::from(instance.0 % 2 == 1);
        let offset = i64::try_from(SLOT * (2 * program.index() + turn + 1)).ok()?;
        self.0.as_ref().map(|file| (file.as_raw_fd(), offset))
    }

    /// Writes down what is known of a run.
    pub(crate) fn write(&self, program: ProgramId, slot: RunSlot) {
        if let (Some(file), Some((_, offset))) = (&self.0, self.place(program, slot.instance)) {
            // At worst an exit status is lost.
            let _ = file.write_all_at(&slot.encode(), u64::try_from(offset).unwrap_or(0));
        }
    }

    /// Clears the slot of a run that was not started: the child may have written it before its exec failed.
    pub(crate) fn clear(&self, program: ProgramId, instance: InstanceId) {
        if let (Some(file), Some((_, offset))) = (&self.0, self.place(program, instance)) {
            let _ = file.write_all_at(&[0; SLOT], u64::try_from(offset).unwrap_or(0));
        }
    }
}

impl RunSlot {
    /// Where in the bytes the process id is.
    pub(crate) const PID: usize = 8;

    pub(crate) fn encode(self) -> SlotBytes {
        let (kind, value): (i32, i32) = match self.ended {
            None => (0, 0),
            Some(ExitStatus::Code(code)) => (1, code),
            Some(ExitStatus::Signal(signal)) => (2, signal),
            Some(ExitStatus::Core(signal)) => (3, signal),
            Some(ExitStatus::Unknown) => (4, 0),
            Some(ExitStatus::OutOfMemory) => (5, 0),
        };
        let mut bytes = [0; SLOT];
        bytes[..8].copy_from_slice(&self.instance.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.pid.to_le_bytes());
        bytes[12..16].copy_from_slice(&kind.to_le_bytes());
        bytes[16..20].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(i32::from_le_bytes);
        let instance = InstanceId(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?));
        let (pid, kind, value) = (word(8)?, word(12)?, word(16)?);
        let ended = match kind {
            1 => Some(ExitStatus::Code(value)),
            2 => Some(ExitStatus::Signal(value)),
            3 => Some(ExitStatus::Core(value)),
            4 => Some(ExitStatus::Unknown),
            5 => Some(ExitStatus::OutOfMemory),
            _ => None,
        };
        (instance.0 > 0).then_some(Self { instance, pid, ended })
    }
}
