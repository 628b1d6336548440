//! The machines and the actors in virtual time, and the fuzz targets.

mod actor_panics;
mod fuzz;
mod simulation;
