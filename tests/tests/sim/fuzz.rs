//! A bounded run of the fuzz targets: every input of the corpora, and some thousands made from each. The long run is
//! `contrib/fuzz`.

use gaggled_tests::{
    fuzz::{TARGETS, corpus, mutate},
    sim::random::Random,
};

/// How many inputs are made for each target.
const COUNT: usize = 20_000;

/// How many for the mail server, where each is a connection.
const CONNECTIONS: usize = 500;

#[test]
fn nothing_that_others_have_written_makes_a_reader_panic() {
    std::thread::scope(|scope| {
        for (target, run) in TARGETS {
            scope.spawn(move || {
                let corpus = corpus(target);
                assert!(!corpus.is_empty(), "{target} has a corpus");
                for input in &corpus {
                    run(input);
                }
                let mut random = Random::new(7);
                let count = if target == "smtp" { CONNECTIONS } else { COUNT };
                (0..count).for_each(|_| run(&mutate(&mut random, &corpus)));
            });
        }
    });
}
