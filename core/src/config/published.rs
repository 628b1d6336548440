//! The configuration that a cluster publishes to its nodes: programs, groups and sets of nodes, without a section `gaggled`.
//! Each node adds its own, from a file that has nothing else.

use super::{Config, ConfigFrom, Diagnostic, Parsed, Settings, Severity, SpanIndex, check, dialect, spelling};

impl Config {
    /// The longest text that can be published, in bytes.
    pub const PUBLISHED_MAX: usize = 4 << 20;

    /// Reads and checks the text of a published configuration for a node with these settings.
    ///
    /// # Errors
    ///
    /// All errors of the text, each with its place and a remedy.
    pub fn parse_published(text: &str, settings: &Settings) -> Result<Parsed, Vec<Diagnostic>> {
        if text.len() > Self::PUBLISHED_MAX {
            let message =
                format!("it has {} bytes, and a published configuration at most {}", text.len(), Self::PUBLISHED_MAX);
            return Err(vec![Diagnostic::error(message)]);
        }
        let published: Self = dialect().from_str(text).map_err(|error| vec![spelling(text, &error)])?;
        let locator = SpanIndex::new(text);
        if let Some(at) = locator.find(&["gaggled"]) {
            let error = Diagnostic::error("a published configuration has no section gaggled: each node has its own");
            return Err(vec![
                error.at(Some(at)).help("remove it; the settings of a node are in the file that it starts with"),
            ]);
        }
        let config = Self { gaggled: settings.clone(), ..published };
        let (errors, warnings): (Vec<_>, Vec<_>) =
            check::check(&config, &locator).into_iter().partition(|found| found.severity == Severity::Error);
        if errors.is_empty() { Ok(Parsed { config, locator, warnings }) } else { Err(errors) }
    }

    /// Whether the programs come from the published configuration.
    pub fn is_published(&self) -> bool {
        self.gaggled.cluster.as_ref().is_some_and(|cluster| cluster.config == ConfigFrom::Published)
    }

    /// What is wrong with the file of a node that has its programs from the published configuration.
    pub fn beside_published(&self, locator: &SpanIndex) -> Vec<Diagnostic> {
        let given = [
            ("programs", self.programs.is_empty()),
            ("groups", self.groups.is_empty()),
            ("nodes", self.nodes.is_empty()),
            ("hosts", self.hosts.is_empty()),
        ];
        let error = |field: &str| {
            let message = format!("{field} are given, and this node has them from the published configuration");
            let error = Diagnostic::error(message).at(locator.find(&[field]));
            error.help(format!(
                "publish them, or remove config: Published from gaggled.cluster, so that {field} of this file are used"
            ))
        };
        given.iter().filter(|(_, is_empty)| self.is_published() && !is_empty).map(|(field, _)| error(field)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let text = r#"(gaggled: (cluster: (name: "s", etcd: ["http://127.0.0.1:2379"], config: Published)))"#;
        Config::parse(text).expect("it is correct").config.gaggled
    }

    #[test]
    fn a_published_text_is_checked_with_the_settings_of_the_node() {
        let text = r#"(hosts: ["n1"], programs: {"web": (command: "web", on: All("n1"))})"#;
        let parsed = Config::parse_published(text, &settings()).expect("it is correct");
        assert_eq!(parsed.config.project("n1").programs.iter().count(), 1);
        let whole = parsed.config.print().expect("it can be written");
        assert_eq!(Config::parse(&whole).expect("it can be read").config, parsed.config);
    }

    #[test]
    fn mistakes_have_their_place_in_the_published_text() {
        let wrong = |text: &str| {
            let found = Config::parse_published(text, &settings()).expect_err("it is wrong");
            (found[0].message.clone(), text[found[0].span.clone().expect("a place")].to_owned())
        };
        let (message, at) = wrong(r#"(programs: {"web": (command: "web", depends: {"db": ()})})"#);
        assert!(message.contains("db") && at.contains("db"), "{message} at {at}");
        let (message, at) = wrong("(gaggled: (), programs: {})");
        assert!(message.contains("no section gaggled") && at.contains("gaggled"), "{message} at {at}");
        let long = format!("(programs: {{}}) // {}", "x".repeat(Config::PUBLISHED_MAX));
        assert!(Config::parse_published(&long, &settings()).expect_err("it is long")[0].message.contains("bytes"));
    }

    #[test]
    fn a_file_beside_the_published_configuration_has_settings_only() {
        let text = r#"(gaggled: (cluster: (name: "s", etcd: ["http://127.0.0.1:2379"], config: Published)), programs: {"a": (command: "a")})"#;
        let parsed = Config::parse(text).expect("it is correct as such");
        assert_eq!(parsed.config.beside_published(&parsed.locator).len(), 1);
    }
}
