//! Generated from `proto/lapwing/authority/v1/authority.proto`, which holds the documentation.

#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]

tonic::include_proto!("lapwing.authority.v1");
