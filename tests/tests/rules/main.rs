//! What holds of the sources, the configuration, the protocol and the documents, and the tools that need no daemon.

mod architecture;
mod configuration;
mod node_sets;
mod protocol;
mod readme;
mod simulate;
