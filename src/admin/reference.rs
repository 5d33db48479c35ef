//! The operator's API as an OpenAPI 3.1 document: served at [`PATH`], and kept in `docs/reference/`. Schemas come from the types that are answered,
//! and a test holds paths and methods against the routes.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::bench::api::{NewRun, RunView};
use crate::config::LimitsTable;
use crate::explain::view::{PullState, PullSummary};
use crate::node::pins::PinState;
use crate::node::removal::{Collected, Removed};
use crate::node::state::NodeState;
use crate::tracker::view::{BlobHolders, HoldersQuery, NodesQuery, NodesState, TrackerState};
use crate::{explain, hydrate, profiles};

/// Where the listener has it.
pub(crate) const PATH: &str = "/api/v1/openapi.json";

const PROFILE: &str = "A profile as `lapwing profile export` writes it";

/// What is sent in one direction.
enum Body {
    Json(Value),
    Text(&'static str),
    Bytes(&'static str),
}

impl Body {
    fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Self {
        Self::Json(schemas.subschema_for::<T>().into())
    }

    fn content(&self) -> Value {
        match self {
            Self::Json(schema) => json!({ "application/json": { "schema": schema } }),
            Self::Text(_) => json!({ "text/plain": { "schema": { "type": "string" } } }),
            Self::Bytes(_) => json!({ "application/octet-stream": {} }),
        }
    }

    fn meaning(&self) -> &'static str {
        match self {
            Self::Json(_) => "As it stands then",
            Self::Text(meaning) | Self::Bytes(meaning) => meaning,
        }
    }
}

/// One method of one path.
struct Operation {
    path: &'static str,
    method: &'static str,
    /// Which daemons answer it.
    servers: &'static [&'static str],
    summary: &'static str,
    parameters: Vec<Value>,
    takes: Option<Body>,
    gives: Body,
    errors: &'static [(u16, &'static str)],
}

const ALL: &[&str] = &["node", "seed", "tracker"];
const STORES: &[&str] = &["node", "seed"];
const NODE: &[&str] = &["node"];
/// A node that carries its own tracker is one, too.
const TRACKER: &[&str] = &["tracker"];

impl Operation {
    const fn get(path: &'static str, servers: &'static [&'static str], summary: &'static str, gives: Body) -> Self {
        Self { path, method: "get", servers, summary, parameters: Vec::new(), takes: None, gives, errors: &[] }
    }

    const fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    fn asked(mut self, parameters: Vec<Value>) -> Self {
        self.parameters.extend(parameters);
        self
    }

    fn takes(mut self, body: Body) -> Self {
        self.takes = Some(body);
        self
    }

    const fn or(mut self, errors: &'static [(u16, &'static str)]) -> Self {
        self.errors = errors;
        self
    }

    fn document(&self) -> Value {
        let mut responses = Map::new();
        let good = json!({ "description": self.gives.meaning(), "content": self.gives.content() });
        responses.insert("200".to_owned(), good);
        for (status, meaning) in self.errors {
            responses
                .insert(status.to_string(), json!({ "description": meaning, "content": Body::Text("").content() }));
        }
        let mut operation = json!({ "summary": self.summary, "tags": self.servers, "responses": responses });
        if !self.parameters.is_empty() {
            operation["parameters"] = self.parameters.clone().into();
        }
        if let Some(body) = &self.takes {
            operation["requestBody"] = json!({ "required": true, "content": body.content() });
        }
        operation
    }
}

/// A part of the path.
fn place(name: &str, meaning: &str) -> Vec<Value> {
    vec![
        json!({ "name": name, "in": "path", "required": true, "description": meaning, "schema": { "type": "string" } }),
    ]
}

/// The keys of a query, from the type that it is read into.
fn query<T: JsonSchema>() -> Vec<Value> {
    let schema = Value::from(SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>());
    let required = |name: &String| schema["required"].as_array().is_some_and(|all| all.contains(&json!(name)));
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    let parameter = |(name, property): (&String, &Value)| {
        let mut property = property.clone();
        let meaning = property["description"].take();
        if let Some(fields) = property.as_object_mut() {
            fields.remove("description");
        }
        json!({ "name": name, "in": "query", "required": required(name), "description": meaning, "schema": property })
    };
    properties.iter().map(parameter).collect()
}

/// All of it, path by path.
fn operations(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    const NO_DIGEST: (u16, &str) = (400, "Not a digest");
    let digest = || place("digest", "sha256: and 64 hexadecimal digits");
    let get = Operation::get;
    vec![
        get("/metrics", ALL, "Metrics", Body::Text("OpenMetrics 1.0; docs/metrics.md names them")),
        get("/healthz", ALL, "Whether the process answers", Body::Text("It does")),
        get("/readyz", ALL, "Whether everything that clients need is there", Body::Text("It is"))
            .or(&[(503, "Not yet")]),
        get(PATH, ALL, "This document", Body::Json(json!({ "type": "object" }))),
        get("/api/v1/state", STORES, "What is held, and how layers are mounted", Body::of::<NodeState>(schemas)),
        get("/api/v1/limits", STORES, "The speed limits in force", Body::of::<LimitsTable>(schemas)),
        get("/api/v1/limits", STORES, "Sets all speed limits until the daemon ends", Body::of::<LimitsTable>(schemas))
            .method("put")
            .takes(Body::of::<LimitsTable>(schemas))
            .or(&[(422, "A limit that makes no sense")]),
        get(
            "/api/v1/bench",
            STORES,
            "The last measurement of the swarm that was begun here",
            Body::of::<RunView>(schemas),
        )
        .or(&[(404, "None was, since the daemon started")]),
        get("/api/v1/bench", STORES, "Begins a measurement", Body::of::<RunView>(schemas))
            .method("post")
            .takes(Body::of::<NewRun>(schemas))
            .or(&[
                (403, "The registry is not listed"),
                (409, "One is under way"),
                (422, "The image's name, or a bound, makes no sense"),
            ]),
        get("/api/v1/bench", STORES, "Stops it", Body::of::<RunView>(schemas))
            .method("delete")
            .or(&[(404, "There is none")]),
        get("/api/v1/pins/{digest}", STORES, "Keeps a blob, also before it is here", Body::of::<PinState>(schemas))
            .method("put")
            .asked(digest())
            .or(&[NO_DIGEST, (507, "It cannot be written down")]),
        get("/api/v1/pins/{digest}", STORES, "Keeps it no longer", Body::of::<PinState>(schemas))
            .method("delete")
            .asked(digest())
            .or(&[NO_DIGEST, (507, "It cannot be written down")]),
        get("/api/v1/blobs/{digest}", NODE, "Removes a blob from the chunk store", Body::of::<Removed>(schemas))
            .method("delete")
            .asked(digest())
            .or(&[NO_DIGEST, (409, "It is pinned, in use, or containerd's")]),
        get("/api/v1/gc", NODE, "What nobody uses", Body::of::<Collected>(schemas)),
        get("/api/v1/gc", NODE, "Removes what nobody uses", Body::of::<Collected>(schemas)).method("put"),
        get("/api/v1/pulls", NODE, "The last pulls, the newest first", Body::of::<Vec<PullSummary>>(schemas)),
        get("/api/v1/pulls/{name}", NODE, "The newest pull of an image or a blob", Body::of::<PullState>(schemas))
            .asked(place("name", "The image, with as much of its name as tells it apart, or a digest"))
            .asked(query::<explain::api::Wanted>())
            .or(&[(404, "None is remembered"), (409, "Several images may be meant")]),
        get(
            "/api/v1/profile",
            NODE,
            "What containers of an image read at their start",
            Body::of::<profiles::api::ProfileState>(schemas),
        )
        .asked(query::<profiles::api::Wanted>())
        .or(&[(422, "None is known, or there is no such image")]),
        get("/api/v1/profile/file", NODE, "The same, to be taken elsewhere", Body::Bytes(PROFILE))
            .asked(query::<profiles::api::Wanted>())
            .or(&[(422, "None is known, or there is no such image")]),
        get(
            "/api/v1/profile/file",
            NODE,
            "Takes one as if it were recorded here",
            Body::of::<profiles::api::ProfileState>(schemas),
        )
        .method("put")
        .takes(Body::Bytes(PROFILE))
        .or(&[(413, "Longer than a profile may be"), (422, "It is none")]),
        get(
            "/api/v1/hydrate",
            NODE,
            "Puts an image's missing blobs into containerd's content store",
            Body::of::<hydrate::Hydrated>(schemas),
        )
        .method("put")
        .takes(Body::of::<hydrate::Wanted>(schemas))
        .or(&[(422, "Why it could not be done")]),
        get("/api/v1/tracker", TRACKER, "The tracker as a whole", Body::of::<TrackerState>(schemas)),
        get("/api/v1/nodes", TRACKER, "Its nodes", Body::of::<NodesState>(schemas)).asked(query::<NodesQuery>()),
        get("/api/v1/holders/{digest}", TRACKER, "Who holds a blob, by group", Body::of::<Vec<BlobHolders>>(schemas))
            .asked(digest())
            .asked(query::<HoldersQuery>())
            .or(&[NO_DIGEST]),
    ]
}

/// The document.
pub(crate) fn document() -> Value {
    let at = |settings: &mut SchemaSettings| settings.definitions_path = "/components/schemas".into();
    let mut schemas = SchemaSettings::draft2020_12().with(at).into_generator();
    let mut paths = Map::new();
    for operation in operations(&mut schemas) {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.document();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Lapwing admin listener",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "What the daemons answer at admin.listen, without authentication: who reaches that address may use it. Requests that a \
                            browser sends for a page of another site get 403. Errors are lines of text. Preheating has a document of its own, \
                            /api/v1/preheat/openapi.json.",
        },
        "servers": [{ "url": "http://127.0.0.1:7082" }],
        "paths": paths,
        "components": { "schemas": schemas.take_definitions(true) },
    })
}

/// As it stands in `docs/reference/`.
pub(crate) fn page() -> String {
    format!("{:#}\n", document())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Pairs of a path and a method that the sources route, but for pages of the dashboard.
    fn routed(directory: &Path, found: &mut BTreeSet<(String, String)>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                routed(&path, found);
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap_or_default();
            for call in source.split(".route(\"/").skip(1) {
                let (path, rest) = call.split_once('"').unwrap();
                let call = rest.lines().next().unwrap();
                let call = call.split(".route(").next().unwrap();
                for method in
                    ["get", "put", "post", "delete"].into_iter().filter(|name| call.contains(&format!("{name}(")))
                {
                    found.insert((format!("/{}", path.replace("{*", "{")), method.to_owned()));
                }
            }
        }
    }

    #[test]
    fn what_is_described_is_what_is_routed() {
        let mut found = BTreeSet::new();
        routed(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        found.retain(|(path, _)| path != "/" && !path.starts_with("/dashboard"));
        found.insert((PATH.to_owned(), "get".to_owned()));
        let document = document();
        let described: BTreeSet<_> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(move |method| (path.clone(), method.clone()))
            })
            .collect();
        assert_eq!(described, found);
    }

    #[test]
    fn every_field_is_explained_and_every_reference_leads_somewhere() {
        let document = document();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for (name, schema) in schemas {
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                assert!(property["description"].is_string() || property["$ref"].is_string(), "{name}: {field}");
            }
        }
        let operations =
            document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
        for parameter in operations.filter_map(|operation| operation["parameters"].as_array()).flatten() {
            assert!(parameter["description"].is_string(), "{parameter}");
        }
        let text = document.to_string();
        let named: BTreeSet<_> =
            text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(named.len() > 15);
        for name in named {
            assert!(schemas[name].is_object(), "{name}");
        }
    }
}
