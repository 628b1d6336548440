//! Named sets of hosts, as the `nodes` of a configuration or a ClusterIt cluster file declare them.
//!
//! Hosts and sets keep the order in which their names first appear, as in PEAK's `running.cluster`. Input on which that
//! module crashed, or which it silently ignored, is refused.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::{algo::toposort, graphmap::DiGraphMap};

/// The set of all hosts.
pub const ALL: &str = "__all__";
/// The set of the hosts that are in no set.
pub const ORPHANS: &str = "__orphans__";

/// A member of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    /// A host.
    Host(String),
    /// Everything in another set.
    Set(String),
}

impl Member {
    /// A member as a configuration writes it: a set has an `@` before its name.
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix('@') {
            Some(name) => Self::Set(name.to_owned()),
            None => Self::Host(text.to_owned()),
        }
    }
}

/// A declaration about hosts; the caller knows its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Declaration {
    /// This host is in no set.
    Orphan(String),
    /// There is a set of this name.
    Set(String),
    /// The set has this member.
    Member(String, Member),
}

/// An error in a declaration, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclarationError<P> {
    /// The place of the declaration.
    pub place: P,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

/// Named sets of hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSets {
    /// All hosts, in order.
    hosts: Vec<String>,
    orphans: BTreeSet<usize>,
    /// The sets, in order, with the numbers of their hosts.
    sets: Vec<(String, BTreeSet<usize>)>,
}

impl NodeSets {
    /// One host, and no sets.
    pub fn of_one(host: &str) -> Self {
        Self { hosts: vec![host.to_owned()], orphans: BTreeSet::from([0]), sets: Vec::new() }
    }

    /// Builds the sets from declarations, or returns all errors in them.
    pub fn new<P: Clone>(statements: &[(P, Declaration)]) -> Result<Self, Vec<DeclarationError<P>>> {
        let wrong = Declarations::new(statements).wrong();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let mut nodes = Self::default();
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut members: BTreeMap<&str, Vec<&Member>> = BTreeMap::new();
        for (_, statement) in statements {
            let host = match statement {
                Declaration::Orphan(host) | Declaration::Member(_, Member::Host(host)) => Some(host.as_str()),
                Declaration::Set(_) | Declaration::Member(_, Member::Set(_)) => None,
            };
            if let Some(host) = host {
                numbers.entry(host).or_insert_with(|| {
                    nodes.hosts.push(host.to_owned());
                    nodes.hosts.len() - 1
                });
            }
            match statement {
                Declaration::Orphan(host) => nodes.orphans.extend(numbers.get(host.as_str())),
                Declaration::Set(set) => {
                    members.entry(set).or_default();
                }
                Declaration::Member(set, member) => members.entry(set).or_default().push(member),
            }
        }
        let mut resolved: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for set in inner_first(&members) {
            let mut hosts = BTreeSet::new();
            for member in members.get(set).into_iter().flatten() {
                match member {
                    Member::Host(host) => hosts.extend(numbers.get(host.as_str())),
                    Member::Set(other) => hosts.extend(resolved.get(other.as_str()).into_iter().flatten()),
                }
            }
            resolved.insert(set, hosts);
        }
        for name in in_order(statements) {
            if let Some(hosts) = resolved.remove(name) {
                nodes.sets.push((name.to_owned(), hosts));
            }
        }
        Ok(nodes)
    }

    /// Reads a ClusterIt cluster file; a place is a line, from 1.
    pub fn parse_cluster(text: &str) -> Result<Self, Vec<DeclarationError<usize>>> {
        Self::new(&statements_of_cluster(text)?)
    }

    /// All sets.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        self.sets.iter().map(|(name, _)| name.as_str())
    }

    /// The hosts that `@set`, `*`, or the name of a host selects; `None` if there is no such set or host.
    pub fn hosts(&self, query: &str) -> Option<Vec<&str>> {
        let numbered = |numbers: &BTreeSet<usize>| {
            numbers.iter().filter_map(|number| self.hosts.get(*number)).map(String::as_str).collect()
        };
        match query.strip_prefix('@') {
            Some(ORPHANS) => Some(numbered(&self.orphans)),
            Some(ALL) => Some(self.hosts.iter().map(String::as_str).collect()),
            Some(name) => self.sets.iter().find(|(set, _)| set == name).map(|(_, hosts)| numbered(hosts)),
            None if query == "*" => self.hosts("@__all__"),
            None => self.hosts.iter().find(|host| *host == query).map(|host| vec![host.as_str()]),
        }
    }

    /// The sets that a host is in; `None` if there is no such host.
    pub fn sets_of(&self, host: &str) -> Option<Vec<&str>> {
        let number = self.hosts.iter().position(|known| known == host)?;
        Some(self.sets.iter().filter(|(_, hosts)| hosts.contains(&number)).map(|(name, _)| name.as_str()).collect())
    }
}

/// The sets, each after those that it contains. There must be no cycle.
fn inner_first<'a>(members: &BTreeMap<&'a str, Vec<&'a Member>>) -> Vec<&'a str> {
    let mut order = toposort(&graph_of(members), None).unwrap_or_default();
    order.reverse();
    order
}

fn graph_of<'a>(members: &BTreeMap<&'a str, Vec<&'a Member>>) -> DiGraphMap<&'a str, ()> {
    let mut graph = DiGraphMap::new();
    for (set, members) in members {
        graph.add_node(*set);
        for member in members {
            if let Member::Set(other) = member {
                graph.add_edge(*set, other.as_str(), ());
            }
        }
    }
    graph
}

/// The names of sets, in the order of their first appearance.
fn in_order<P>(statements: &[(P, Declaration)]) -> impl Iterator<Item = &str> {
    statements.iter().filter_map(|(_, statement)| match statement {
        Declaration::Set(name) | Declaration::Member(_, Member::Set(name)) => Some(name.as_str()),
        Declaration::Orphan(_) | Declaration::Member(_, Member::Host(_)) => None,
    })
}

/// Declarations, with the sets that they declare, for the check.
struct Declarations<'a, P> {
    statements: &'a [(P, Declaration)],
    sets: BTreeSet<&'a str>,
}

impl<'a, P: Clone> Declarations<'a, P> {
    fn new(statements: &'a [(P, Declaration)]) -> Self {
        let set = |statement: &'a Declaration| match statement {
            Declaration::Set(name) => Some(name.as_str()),
            Declaration::Orphan(_) | Declaration::Member(..) => None,
        };
        Self { statements, sets: statements.iter().filter_map(|(_, statement)| set(statement)).collect() }
    }

    fn wrong(&self) -> Vec<DeclarationError<P>> {
        let mut wrong: Vec<DeclarationError<P>> =
            self.statements.iter().filter_map(|(place, statement)| self.wrong_at(place, statement)).collect();
        if wrong.is_empty() {
            wrong.extend(self.cycle());
        }
        wrong
    }

    fn wrong_at(&self, place: &P, statement: &Declaration) -> Option<DeclarationError<P>> {
        let wrong = |message: String, help: &str| {
            Some(DeclarationError { place: place.clone(), message, help: help.to_owned() })
        };
        let member = match statement {
            Declaration::Orphan(host) => Member::Host(host.clone()),
            Declaration::Member(_, member) => member.clone(),
            Declaration::Set(name) if name.is_empty() => {
                return wrong("a set of nodes has no name".into(), "write a name");
            }
            Declaration::Set(name) if [ALL, ORPHANS].contains(&name.as_str()) => {
                return wrong(format!("set \"{name}\" has a reserved name"), "give it another name");
            }
            Declaration::Set(name) if name.contains(char::is_whitespace) || name.starts_with('@') => {
                return wrong(
                    format!("set \"{name}\" has a name that cannot be used"),
                    "write it without spaces and @",
                );
            }
            Declaration::Set(_) => return None,
        };
        match &member {
            Member::Set(name) if !self.sets.contains(name.as_str()) => {
                wrong(format!("there is no set \"{name}\""), "add it, or correct the name")
            }
            Member::Host(host) if host.is_empty() || host.contains(char::is_whitespace) => {
                wrong(format!("\"{host}\" is no name of a host"), "write one name, without spaces")
            }
            Member::Host(host) if self.sets.contains(host.as_str()) => {
                wrong(format!("host \"{host}\" has the name of a set"), "rename one of the two")
            }
            Member::Set(_) | Member::Host(_) => None,
        }
    }

    /// An error for sets that contain each other, at the declaration that closes the cycle.
    fn cycle(&self) -> Option<DeclarationError<P>> {
        let inclusions = || {
            self.statements.iter().filter_map(|(place, statement)| match statement {
                Declaration::Member(set, Member::Set(other)) => Some((place, set.as_str(), other.as_str())),
                Declaration::Member(..) | Declaration::Orphan(_) | Declaration::Set(_) => None,
            })
        };
        let whole: DiGraphMap<&str, ()> = inclusions().map(|(_, set, other)| (set, other)).collect();
        toposort(&whole, None).err()?;
        let mut graph: DiGraphMap<&str, ()> = DiGraphMap::new();
        inclusions().find_map(|(place, set, other)| {
            graph.add_edge(set, other, ());
            let cycle = toposort(&graph, None).err()?;
            let message = format!("set \"{}\" is in itself, through other sets", cycle.node_id());
            Some(DeclarationError { place: place.clone(), message, help: "remove one of them from the other".into() })
        })
    }
}

fn statements_of_cluster(text: &str) -> Result<Vec<(usize, Declaration)>, Vec<DeclarationError<usize>>> {
    let mut statements = Vec::new();
    // The set that lines belong to, and whether its members are sets.
    let mut current: Option<(String, bool)> = None;
    let mut kinds: BTreeMap<String, bool> = BTreeMap::new();
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let begun = line
            .strip_prefix("GROUP:")
            .map(|name| (name, false))
            .or(line.strip_prefix("LUMP:").map(|name| (name, true)));
        match (begun, &current) {
            (Some((name, of_sets)), _) => {
                let name = name.trim().to_owned();
                if kinds.insert(name.clone(), of_sets).is_some_and(|before| before != of_sets) {
                    let message = format!("\"{name}\" is a GROUP and a LUMP");
                    return Err(vec![DeclarationError {
                        place: number,
                        message,
                        help: "rename one of the two".to_owned(),
                    }]);
                }
                statements.push((number, Declaration::Set(name.clone())));
                current = Some((name, of_sets));
            }
            (None, None) => statements.push((number, Declaration::Orphan(line.to_owned()))),
            (None, Some((set, of_sets))) => {
                let member = if *of_sets { Member::Set(line.to_owned()) } else { Member::Host(line.to_owned()) };
                statements.push((number, Declaration::Member(set.clone(), member)));
            }
        }
    }
    Ok(statements)
}

/// The hosts that are in no set, and the sets with their members, as a configuration writes them.
pub type Places = (Vec<String>, Vec<(String, Vec<String>)>);

/// Converts a cluster file for a configuration: the hosts that are in no set, and the sets.
pub fn config_of_cluster(text: &str) -> Result<Places, Vec<DeclarationError<usize>>> {
    let statements = statements_of_cluster(text)?;
    NodeSets::new(&statements)?;
    let mut hosts = Vec::new();
    let mut sets: Vec<(String, Vec<String>)> = Vec::new();
    for (_, statement) in statements {
        match statement {
            Declaration::Orphan(host) => hosts.push(host),
            Declaration::Set(name) if sets.iter().any(|(known, _)| *known == name) => {}
            Declaration::Set(name) => sets.push((name, Vec::new())),
            Declaration::Member(set, member) => {
                let text = match &member {
                    Member::Host(host) => host.clone(),
                    Member::Set(other) => format!("@{other}"),
                };
                if let Some((_, members)) = sets.iter_mut().find(|(known, _)| *known == set)
                    && !members.contains(&text)
                {
                    members.push(text);
                }
            }
        }
    }
    Ok((hosts, sets))
}
