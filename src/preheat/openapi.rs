//! The job API as an OpenAPI 3.1 document: served, and kept at `docs/reference/preheat-api.json`. Bounds come from [`super::limits`]; the tests
//! below hold paths, methods and fields against the routes and types.

use serde_json::{Value, json};

use super::api::{DESCRIPTION, JOB, JOBS};
use super::limits::{MAX_IMAGES, MAX_NAME, MAX_NODES, MAX_PLATFORMS, MAX_REQUEST, MAX_RUNNING};

/// The document.
pub(crate) fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Lapwing preheat",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "Jobs that bring images to seeds and nodes before anybody pulls them. Served by nodes and seeds at admin.listen, \
                            without authentication: who reaches that address may use it. Errors are lines of text.",
        },
        "servers": [{ "url": "http://127.0.0.1:7082" }],
        "paths": {
            JOBS: {
                "get": {
                    "summary": "All jobs that are remembered, the latest first, without their blobs",
                    "operationId": "listJobs",
                    "responses": { "200": body("The jobs", "JobList") },
                },
                "post": {
                    "summary": "Begin a job",
                    "operationId": "createJob",
                    "requestBody": { "required": true, "content": { "application/json": { "schema": named("NewJob") } } },
                    "responses": {
                        "202": body("The job, which goes on by itself", "Job"),
                        "400": text("Not JSON"),
                        "403": text("A registry that is not listed in this machine's configuration"),
                        "413": text(&format!("A body of more than {MAX_REQUEST} bytes")),
                        "415": text("Not sent as application/json"),
                        "422": text("Something in it makes no sense"),
                        "429": text(&format!("{MAX_RUNNING} jobs are running")),
                    },
                },
            },
            JOB: {
                "parameters": [{
                    "name": "id", "in": "path", "required": true,
                    "schema": { "type": "string", "pattern": "^[0-9a-f]{16}$" },
                }],
                "get": {
                    "summary": "A job with its blobs",
                    "operationId": "getJob",
                    "responses": { "200": body("The job", "Job"), "404": text("No such job") },
                },
                "delete": {
                    "summary": "Stop a job; one that has ended stays as it is",
                    "operationId": "cancelJob",
                    "responses": { "200": body("The job as it stands now", "Job"), "404": text("No such job") },
                },
            },
            DESCRIPTION: {
                "get": {
                    "summary": "This document",
                    "operationId": "describe",
                    "responses": { "200": { "description": "OpenAPI 3.1", "content": { "application/json": {} } } },
                },
            },
        },
        "components": { "schemas": schemas() },
    })
}

fn schemas() -> Value {
    let count = |meaning: &str| json!({ "type": "integer", "minimum": 0, "description": meaning });
    let word = |meaning: &str| json!({ "type": "string", "description": meaning });
    let to = json!({
        "type": "string", "pattern": "^(seeds|here|all|[1-9][0-9]*)$",
        "description": format!("The seeds of the group; the machine that is asked; all nodes of the group; or so many of them, at most {MAX_NODES}"),
    });
    let platforms = json!({
        "type": "array", "maxItems": MAX_PLATFORMS, "items": { "type": "string" },
        "description": "OS/ARCHITECTURE[/VARIANT] each, or \"all\"; none: that of the machine that is asked",
    });
    let lazy_index = json!({ "type": "boolean", "description": "Have the index of each layer built and stated, so that the first node mounts it lazily" });
    let unix = |meaning: &str| json!({ "type": ["integer", "null"], "description": format!("{meaning}, Unix time in seconds") });
    json!({
        "NewJob": {
            "type": "object", "required": ["images"], "additionalProperties": false,
            "properties": {
                "images": {
                    "type": "array", "minItems": 1, "maxItems": MAX_IMAGES,
                    "items": { "type": "string", "maxLength": MAX_NAME },
                    "description": "REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@DIGEST",
                },
                "platforms": platforms,
                "to": to,
                "lazy_index": lazy_index,
            },
        },
        "Job": {
            "type": "object",
            "properties": {
                "id": word("Its name"),
                "state": { "enum": ["running", "done", "failed", "canceled"] },
                "cause": { "enum": ["command", "push"], "description": "Who asked for it: somebody, or a registry's notification" },
                "to": to,
                "platforms": platforms,
                "lazy_index": lazy_index,
                "created": unix("When it began"),
                "ended": unix("When it ended"),
                "images": { "type": "array", "items": named("Image") },
                "blobs_total": count("Blobs known so far"),
                "blobs_done": count("Those that are where they were to be"),
                "blobs_failed": count("Those that could not be fetched or indexed"),
                "bytes_total": count("Of blobs whose length is known"),
                "bytes_done": count("Of these, what is there; of several nodes, on the average"),
                "blobs": { "type": "array", "items": named("Blob"), "description": "Left out of listings" },
            },
        },
        "JobList": { "type": "object", "properties": { "jobs": { "type": "array", "items": named("Job") } } },
        "Image": {
            "type": "object",
            "properties": {
                "name": word("In full"),
                "state": { "enum": ["resolving", "resolved", "failed"] },
                "blobs": count("Blobs of the chosen platforms"),
                "error": word("Why it failed, or empty"),
            },
        },
        "Blob": {
            "type": "object",
            "properties": {
                "digest": word("SHA-256"),
                "state": { "enum": ["waiting", "fetching", "indexing", "done", "failed"] },
                "length_bytes": { "type": ["integer", "null"], "description": "Null until it is known" },
                "have_bytes": count("How much is there"),
                "error": word("Why it failed, or empty"),
            },
        },
    })
}

fn named(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn body(description: &str, schema: &str) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": named(schema) } } })
}

fn text(description: &str) -> Value {
    json!({ "description": description, "content": { "text/plain": { "schema": { "type": "string" } } } })
}

/// As it stands in `docs/reference/`.
pub(crate) fn page() -> String {
    format!("{:#}\n", document())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::api::{BlobView, ImageView, JobList, JobView, NewJob};
    use super::super::jobs::{BlobState, JobState};
    use super::super::to::To;
    use super::*;

    fn fields(value: &Value) -> BTreeSet<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn every_field_is_described_and_nothing_else() {
        let blob = BlobView {
            digest: String::new(),
            state: BlobState::Done,
            length_bytes: None,
            have_bytes: 0,
            error: String::new(),
        };
        let image = ImageView { name: String::new(), state: String::new(), blobs: 0, error: String::new() };
        let job = JobView {
            id: String::new(),
            state: JobState::Done,
            cause: String::new(),
            to: To::All,
            platforms: Vec::new(),
            lazy_index: true,
            created: 0,
            ended: None,
            images: vec![image.clone()],
            blobs_total: 0,
            blobs_done: 0,
            blobs_failed: 0,
            bytes_total: 0,
            bytes_done: 0,
            blobs: vec![blob.clone()],
        };
        let new = NewJob { images: Vec::new(), platforms: Vec::new(), to: To::Seeds, lazy_index: false };
        let document = document();
        for (name, sample) in [
            ("NewJob", json!(new)),
            ("Job", json!(job)),
            ("Image", json!(image)),
            ("Blob", json!(blob)),
            ("JobList", json!(JobList { jobs: Vec::new() })),
        ] {
            assert_eq!(fields(&document["components"]["schemas"][name]["properties"]), fields(&sample), "{name}");
        }
        let states = |schema: &str| document["components"]["schemas"][schema]["properties"]["state"]["enum"].clone();
        let all = [JobState::Running, JobState::Done, JobState::Failed, JobState::Canceled];
        assert_eq!(states("Job"), json!(all));
        let all = [BlobState::Waiting, BlobState::Fetching, BlobState::Indexing, BlobState::Done, BlobState::Failed];
        assert_eq!(states("Blob"), json!(all));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        let named = text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next());
        for name in named.collect::<BTreeSet<_>>() {
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
