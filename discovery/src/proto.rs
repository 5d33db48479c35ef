//! Generated from `proto/lapwing/tracker/v1/tracker.proto`, which holds the documentation.

#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]

tonic::include_proto!("lapwing.tracker.v1");
