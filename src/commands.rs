//! Commands that run and end. Their output is for people by default and JSON on demand.

pub(crate) mod bench;
pub(crate) mod ca;
pub(crate) mod config;
mod daemon;
pub(crate) mod detach;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod find;
pub(crate) mod gc;
pub(crate) mod generate;
pub(crate) mod get;
pub(crate) mod hydrate;
pub(crate) mod index;
pub(crate) mod limits;
pub(crate) mod ls;

pub(crate) mod nodes;
pub(crate) mod pin;
pub(crate) mod preheat;
pub(crate) mod profile;
pub(crate) mod rm;
pub(crate) mod setup;
mod table;
mod tracker;
