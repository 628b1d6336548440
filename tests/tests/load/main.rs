//! Real daemons, floods and exhausted limits. These tests load the machine, so they run apart from the others.

mod debian_daemons;
mod hostile_clients;
mod many_programs;
mod real_site;
mod resource_exhaustion;
mod thirty_programs;
