//! The built programs from end to end, as an operator uses them.

mod cgroups;
mod control_scripts;
mod daemon;
mod disk;
mod followers;
mod health;
mod hostile_files;
mod log_files;
mod members;
mod processes;
mod recovery;
mod reload_and_upgrade;
mod sandbox;
mod scenarios_2011;
mod state_directory;
