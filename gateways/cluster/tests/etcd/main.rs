//! Several gaggleds and a real etcd of three members on this machine.
//!
//! The tests need `etcd` and `etcdctl`; `contrib/setup cluster` installs them. Without them each test says so and is left out.

mod edges;
mod failover;
mod harness;
mod keeper;
mod orders;
mod publish;
mod wrong_inputs;
