//! The machines and the actors in virtual time, and the fuzz targets.

mod actor_panics;
mod cluster;
mod fuzz;
mod simulation;
