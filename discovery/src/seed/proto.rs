//! Generated from `proto/lapwing/seed/v1/seed.proto`, which holds the documentation.

#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]

tonic::include_proto!("lapwing.seed.v1");
