//! The examples in the documents work: their commands are run, their configurations are read.

use std::{fs, path::Path, sync::Arc};

use gaggled_core::config::Config;
use gaggled_tests::harness::{Daemon, DaemonOptions, directory};

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read_to_string(path).expect("a document")
}

/// The blocks of a language in a document.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    text.split(&opening).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_configurations_of_the_readme_can_be_read() {
    let readme = document("README.md");
    let shown = blocks(&readme, "ron");
    assert_eq!(shown.len(), 6);
    for text in shown {
        let whole = if text.starts_with('(') { text.to_owned() } else { format!("(gaggled: ({text}))") };
        if let Err(found) = Config::parse(&whole) {
            panic!("{found:?}");
        }
    }
}

#[test]
fn the_commands_of_the_readme_work_on_the_demo() {
    let directory = Arc::new(directory());
    let own = directory.path().display().to_string();
    let config = document("contrib/demo/system.ron").replace("/tmp/gaggled-demo", &own);
    let mut daemon = Daemon::with(&config, directory, &DaemonOptions::default());
    daemon.wait_up("front", 1);
    daemon.kill("database", nix::sys::signal::Signal::SIGKILL);
    daemon.wait_up("application", 2);
    let readme = document("README.md");
    let commands: Vec<&str> = blocks(&readme, "console")
        .iter()
        .flat_map(|block| block.lines())
        .filter_map(|line| line.strip_prefix("$ gaggled_controller "))
        .collect();
    assert_eq!(commands.len(), 5);
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        let output = daemon.tool("gaggled_controller", &words);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(shown.contains("application") || shown.contains("nothing changes"), "{command}: {shown}");
    }
    let help = daemon.tool("gaggled_controller", &["--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let names = [
        "up", "down", "restart", "tell", "signal", "dump", "why", "logs", "backoff", "wait", "events", "snapshot",
        "status", "plan", "reload", "upgrade", "shutdown",
    ];
    for name in names {
        assert!(help.contains(&format!("  {name} ")), "{name} is not in the help");
    }
}

#[test]
fn the_forecast_of_the_readme_is_what_gaggled_says() {
    let readme = document("README.md");
    let shown = blocks(&readme, "console").into_iter().find_map(|block| block.strip_prefix("$ gaggled simulate "));
    let (command, told) = shown.and_then(|block| block.split_once("\n...\n")).expect("a forecast");
    let output = std::process::Command::new(gaggled_tests::harness::binary("gaggled"))
        .arg("simulate")
        .args(command.split(' '))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .expect("gaggled");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.ends_with(told), "{said}");
}

#[test]
fn every_program_tells_its_version_and_its_use() {
    for tool in ["gaggled", "gaggled_controller", "gaggled_listener", "gaggled_smtpgate"] {
        for argument in ["--version", "--help", "-h"] {
            let output = std::process::Command::new(gaggled_tests::harness::binary(tool))
                .arg(argument)
                .output()
                .expect("a tool");
            assert!(output.status.success(), "{tool} {argument}");
        }
        let output = std::process::Command::new(gaggled_tests::harness::binary(tool))
            .arg("--nonsense")
            .output()
            .expect("a tool");
        assert_eq!(output.status.code(), Some(2), "{tool}");
    }
}

#[test]
fn the_tests_that_documents_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut code = String::new();
    let mut folders =
        vec![root.join("tests"), root.join("core"), root.join("actors"), root.join("gateways"), root.join("tools")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                code += &fs::read_to_string(path).expect("a source");
            }
        }
    }
    for name in ["contrib/docs/reliability.md", "contrib/docs/security.md"] {
        let text = document(name);
        let rows = text.lines().filter(|line| line.starts_with('|'));
        let words = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
        let tests: Vec<&str> = words.filter(|word| word.matches('_').count() > 1 && !word.contains('=')).collect();
        assert!(tests.len() > 10, "{name} names tests");
        for test in tests {
            assert!(code.contains(&format!("fn {test}(")), "{name} names {test}, which is no test");
        }
    }
}
