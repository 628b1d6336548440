//! The only source of random numbers in the simulator.

pub use gaggled_core::base::random::Random;

/// Random choices.
pub trait Pick {
    /// One of several.
    fn pick<T: Copy>(&mut self, choices: &[T]) -> T;
}

impl Pick for Random {
    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let at = self.below(choices.len() as u64);
        choices[usize::try_from(at).expect("a small number")]
    }
}
