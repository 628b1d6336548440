//! The importers, each with the files of the system that it reads.

mod cluster_init;
mod diprocd;
mod gaggled;
mod plone;
mod supervisord;
