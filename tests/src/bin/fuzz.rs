//! `fuzz TARGET|all COUNT [SEED]`: gives each target COUNT inputs mutated from its corpus, and keeps the findings.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use gaggled_tests::{
    fuzz::{TARGETS, corpus, mutate},
    harness::now,
    sim::random::Random,
};

/// An input that takes longer is a finding, too.
const SLOW: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (Some(name), Some(count)) = (words.first(), words.get(1).and_then(|word| word.parse::<u64>().ok())) else {
        eprintln!("usage: fuzz TARGET|all COUNT [SEED]");
        return ExitCode::from(2);
    };
    let seed = words.get(2).and_then(|word| word.parse().ok()).unwrap_or(1);
    let mut findings = 0;
    for (target, run) in TARGETS.into_iter().filter(|(target, _)| name == "all" || name == target) {
        let corpus = corpus(target);
        // Each input of the mail target opens a connection.
        let count = if target == "smtp" { count / 20 } else { count };
        let mut random = Random::new(seed);
        let begun = now();
        for number in 0..count {
            let input = mutate(&mut random, &corpus);
            let at = now();
            let ended = catch_unwind(AssertUnwindSafe(|| run(&input)));
            if ended.is_err() || at.elapsed() > SLOW {
                findings += 1;
                let file = format!("finding-{target}-{seed}-{number}");
                let kept = std::fs::write(Path::new(&file), &input).is_ok();
                eprintln!("{target}: input {number} of seed {seed} is a finding (kept in {file}: {kept})");
            }
        }
        println!("{target}: {count} inputs in {:.1} s", begun.elapsed().as_secs_f64());
    }
    println!("{findings} findings");
    ExitCode::from(u8::from(findings > 0))
}
