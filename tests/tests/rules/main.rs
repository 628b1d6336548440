//! Rules for the sources, the configuration, the protocol and the documents, and tools that need no daemon.

mod architecture;
mod configuration;
mod node_sets;
mod protocol;
mod readme;
mod simulate;
