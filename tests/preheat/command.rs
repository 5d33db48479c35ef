//! `lapwing preheat` and its API.

use std::process::Output;

use lapwing_lab::{
    BASIC_AUTH, Host, Lapwing, LapwingSettings, Mbit, RegistryOptions, Site, image, lapwing_binary, require, wait,
};
use serde_json::{Value, json};

use super::{DEADLINE, NEEDS, has_all, seed, send_admin, site, whole};

/// With credentials for the private registry, in a file of the host's.
fn with_credentials(site: &Site, settings: LapwingSettings) -> LapwingSettings {
    let config = site.registry.host().dir().join("config.json");
    let auths = json!({ "auths": { site.registry.name(): { "auth": BASIC_AUTH } } });
    std::fs::write(&config, auths.to_string()).unwrap();
    settings.with("registries", &format!("docker_config = {:?}", config.display().to_string()))
}

fn preheat(host: &Host, args: &[&str]) -> (i32, Value, Output) {
    let args = [&["preheat", "--json"], args].concat();
    let output = host.run(lapwing_binary().unwrap(), &args).unwrap();
    let said = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), said, output)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn digests(layout: &image::Layout) -> Vec<String> {
    layout.layers.iter().map(|layer| layer.digest.clone()).collect()
}

/// A node without containerd.
fn bare_node(site: &Site, name: &str, settings: LapwingSettings) -> (Host, Lapwing) {
    let host = site.network.host(name, None).unwrap();
    let settings = settings.with("snapshotter", "enabled = false").registry(&site.registry.name());
    let node = Lapwing::start(&host, settings).unwrap();
    (host, node)
}

fn job(node: &Lapwing, id: &str) -> Value {
    serde_json::from_str(&node.admin(&format!("/api/v1/preheat/jobs/{id}")).unwrap().text()).unwrap()
}

#[test]
fn a_private_image_goes_where_it_is_sent_and_nowhere_else() {
    if !require("a_private_image_goes_where_it_is_sent_and_nowhere_else", &NEEDS) {
        return;
    }
    let site = site("preheat-to", RegistryOptions { basic_auth: true, ..RegistryOptions::default() });
    let seed_settings = with_credentials(&site, site.seed_settings()).with("lazy", "build_indexes = false");
    let (_, seed) = seed(&site, seed_settings);
    let settings = with_credentials(&site, site.settings());
    let nodes: Vec<_> = (0..3).map(|number| bare_node(&site, &format!("n{number}"), settings.clone())).collect();
    let (host, asked) = &nodes[0];
    let small = image::small().unwrap();
    let reference = site.registry.push(&small, "private/small:1").unwrap();
    let layers = digests(&small);

    let (code, done, output) = preheat(host, &[&reference, "--lazy-index"]);
    assert_eq!((code, &done["state"]), (0, &json!("done")), "{}", said(&output));
    assert_eq!((&done["blobs_done"], &done["bytes_done"]), (&json!(3), &done["bytes_total"]));
    assert!(has_all(&seed, &layers), "the seed has the image");
    assert_eq!(seed.log().unwrap().matches("built the index of a layer").count(), layers.len());
    assert!(whole(asked).iter().all(|digest| !layers.contains(digest)), "the node was not meant");
    // Its digest is enough as well, and what is there is there at once.
    let by_digest = reference.replace(":1", &format!("@{}", small.manifest.digest));
    assert_eq!(preheat(host, &[&by_digest, "--lazy-index"]).0, 0);

    let fetched = seed.piece_bytes("origin").unwrap();
    let (code, _, output) = preheat(host, &[&reference, "--to", "here"]);
    assert_eq!(code, 0, "{}", said(&output));
    assert!(has_all(asked, &layers));
    assert_eq!(asked.piece_bytes("origin").unwrap(), 0, "the seed has it");
    assert_eq!(seed.piece_bytes("origin").unwrap(), fetched);

    let push = |seed: u64, name: &str| {
        let noise = image::noise(seed, &[1, 1, 1]).unwrap();
        let reference = site.registry.push(&noise.layout, name).unwrap();
        (reference, digests(&noise.layout))
    };
    let (for_two, two_layers) = push(83, "private/two:1");
    let (for_all, all_layers) = push(82, "private/all:1");
    let begin = |reference: &str, to: &str| {
        let (code, begun, output) = preheat(host, &[reference, "--to", to, "--detach"]);
        assert_eq!(code, 0, "{}", said(&output));
        begun["id"].as_str().unwrap().to_owned()
    };
    let to_two = begin(&for_two, "2");
    wait::until_true("the two to be chosen for each blob", DEADLINE, || {
        site.tracker.metric("lapwing_tracker_calls_total", "method=\"order\",outcome=\"ok\"").unwrap() >= 4.0
    })
    .unwrap();
    // One that may not have it says so, and does not keep the job waiting.
    let (_, _stranger) = bare_node(&site, "n3", site.settings());
    wait::until_true("the tracker to know it", DEADLINE, || {
        site.tracker.metric("lapwing_tracker_nodes", "").unwrap() >= 5.0
    })
    .unwrap();
    let to_all = begin(&for_all, "all");
    for id in [&to_two, &to_all] {
        wait::until_true("the nodes to have what they are sent", DEADLINE, || job(asked, id)["state"] != "running")
            .unwrap();
    }
    assert_eq!(job(asked, &to_two)["state"], "done", "{}", job(asked, &to_two));
    let failed = job(asked, &to_all);
    assert_eq!(failed["state"], "failed");
    let error = failed["blobs"][0]["error"].as_str().unwrap();
    assert!(error.contains("1 of 4 nodes") && error.contains("credentials"), "{error}");
    let having = |layers: &[String]| nodes.iter().filter(|(_, node)| has_all(node, layers)).count();
    assert_eq!((having(&all_layers), having(&two_layers)), (3, 2));
    let some = |(_, node): &&(Host, Lapwing)| whole(node).iter().any(|digest| two_layers.contains(digest));
    assert_eq!(nodes.iter().filter(some).count(), 2, "the third has nothing of it");
}

#[test]
fn what_must_not_be_is_refused_and_what_is_stopped_stops() {
    if !require("what_must_not_be_is_refused_and_what_is_stopped_stops", &NEEDS) {
        return;
    }
    let site = site("preheat-no", RegistryOptions { basic_auth: true, ..RegistryOptions::default() });
    // It may not have anything.
    let (host, seed) = seed(&site, site.seed_settings());
    let small = image::small().unwrap();
    let reference = site.registry.push(&small, "private/small:1").unwrap();
    let (code, failed, output) = preheat(&host, &[&reference]);
    assert_eq!((code, &failed["state"]), (1, &json!("failed")), "{}", said(&output));
    let error = failed["images"][0]["error"].as_str().unwrap();
    assert!(error.contains("registries.hosts") && error.contains("401"), "{error}");

    for unlisted in ["169.254.169.254/latest/meta-data:1", "127.0.0.1:7082/a:1", "tracker.lab:7070/a:1"] {
        let (code, _, output) = preheat(&host, &[unlisted]);
        assert_eq!(code, 3);
        assert!(said(&output).contains("is not listed"), "{}", said(&output));
    }
    let (code, _, output) = preheat(&host, &["reg.example/UPPER"]);
    assert!(code == 3 && said(&output).contains("reg.example/UPPER"), "{}", said(&output));
    assert_eq!(preheat(&host, &["--to", "nobody", "a"]).0, 2);
    assert_eq!(preheat(&host, &[]).0, 2);
    assert_eq!(preheat(&host, &["--admin", "127.0.0.1:1", "a"]).0, 3);

    let post = "POST /api/v1/preheat/jobs HTTP/1.1";
    let json_post = format!("{post}\r\nContent-Type: application/json");
    let giant = format!("{{\"images\":[\"{}\"]}}", "x".repeat(1 << 20));
    let images: Vec<String> = (0..65).map(|number| format!("{reference}{number}")).collect();
    let many = json!({ "images": images }).to_string();
    for (expected, head, body) in [
        (413, &*json_post, &*giant),
        (422, &json_post, &many),
        (422, &json_post, "{\"images\":[]}"),
        (422, &json_post, "{\"images\":[\"a\"],\"to\":\"everybody\"}"),
        (400, &json_post, "{"),
        // As a page of another origin could send it without asking.
        (415, &format!("{post}\r\nContent-Type: text/plain"), "{\"images\":[\"a\"]}"),
        (404, "GET /api/v1/preheat/jobs/0000000000000000 HTTP/1.1", ""),
        (404, "DELETE /api/v1/preheat/jobs/..%2f..%2fpins HTTP/1.1", ""),
    ] {
        let (status, text) = send_admin(&host, head, body.as_bytes());
        assert_eq!(status, expected, "{head}: {text}");
    }
    the_description_is_true(&host);
    assert_eq!(seed.piece_bytes("origin").unwrap(), 0);

    // A node alone: no seed, and a registry whose link takes long.
    let alone = site.network.host("slow", Some(Mbit(8))).unwrap();
    let settings = with_credentials(&site, LapwingSettings::node(&[])).with("snapshotter", "enabled = false");
    let slow = Lapwing::start(&alone, settings.registry(&site.registry.name())).unwrap();
    let noise = image::noise(81, &[4; 12]).unwrap();
    let reference = site.registry.push(&noise.layout, "private/noise:1").unwrap();
    let (code, begun, output) = preheat(&alone, &[&reference, "--to", "here", "--detach"]);
    assert_eq!((code, &begun["state"]), (0, &json!("running")), "{}", said(&output));
    let id = begun["id"].as_str().unwrap();
    let some_came = || job(&slow, id)["bytes_done"].as_u64().unwrap() > 0;
    wait::until_true("some of it to have come", DEADLINE, some_came).unwrap();
    let (code, canceled, _) = preheat(&alone, &["--cancel", id]);
    assert_eq!((code, &canceled["state"]), (0, &json!("canceled")));
    let (_, list, _) = preheat(&alone, &["--list"]);
    assert_eq!((&list["jobs"][0]["id"], &list["jobs"][0]["state"]), (&json!(id), &json!("canceled")));
    let opened = |node: &Lapwing| -> usize {
        let state: Value = serde_json::from_str(&node.admin("/api/v1/state").unwrap().text()).unwrap();
        state["blobs"].as_array().unwrap().len()
    };
    assert!(opened(&slow) < noise.layout.layers.len(), "blobs whose turn had not come are not begun");
}

#[test]
fn a_blob_that_the_seed_gives_up_ends_its_job_with_the_reason() {
    if !require("a_blob_that_the_seed_gives_up_ends_its_job_with_the_reason", &NEEDS) {
        return;
    }
    let site = site("preheat-lost", RegistryOptions::default());
    let (_, seed) = seed(&site, site.seed_settings());
    let (host, node) = bare_node(&site, "n", site.settings());
    let small = image::small().unwrap();
    let reference = site.registry.push(&small, "public/small:1").unwrap();
    let layer = &small.layers[0].digest;
    // The registry's disk turned a bit: what it serves is not what was pushed.
    let hex = layer.strip_prefix("sha256:").unwrap();
    let blobs = site.registry.host().dir().join("registry/storage/docker/registry/v2/blobs/sha256");
    let data = blobs.join(&hex[..2]).join(hex).join("data");
    let mut bytes = std::fs::read(&data).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&data, bytes).unwrap();

    let (code, begun, output) = preheat(&host, &[&reference, "--detach"]);
    assert_eq!(code, 0, "{}", said(&output));
    let id = begun["id"].as_str().unwrap();
    wait::until_true("the job to end", DEADLINE, || job(&node, id)["state"] != "running").unwrap();
    let ended = job(&node, id);
    assert_eq!(ended["state"], "failed", "{ended}");
    let failed: Vec<&Value> = ended["blobs"].as_array().unwrap().iter().filter(|blob| blob["error"] != "").collect();
    assert_eq!((failed.len(), &failed[0]["digest"]), (1, &json!(layer)), "{ended}");
    assert!(failed[0]["error"].as_str().unwrap().contains("hashes to"), "{ended}");
    assert_eq!(seed.metric("lapwing_seed_given_up_total", "").unwrap(), 1.0, "the registry was not asked again");
}

#[test]
fn a_node_that_takes_no_orders_says_so_at_once() {
    if !require("a_node_that_takes_no_orders_says_so_at_once", &NEEDS) {
        return;
    }
    let site = site("preheat-deaf", RegistryOptions::default());
    let (host, node) = bare_node(&site, "n", site.settings().with("preheat", "accept = false"));
    let small = image::small().unwrap();
    let reference = site.registry.push(&small, "public/small:1").unwrap();
    let (code, begun, output) = preheat(&host, &[&reference, "--to", "all", "--detach"]);
    assert_eq!(code, 0, "{}", said(&output));
    let id = begun["id"].as_str().unwrap();
    wait::until_true("the job to end", DEADLINE, || job(&node, id)["state"] != "running").unwrap();
    let ended = job(&node, id);
    assert_eq!(ended["state"], "failed", "{ended}");
    let error = ended["blobs"][0]["error"].as_str().unwrap();
    assert!(error.contains("1 of 1 nodes") && error.contains("takes no orders"), "{ended}");
    assert!(!has_all(&node, &digests(&small)));
}

/// The document is the one in `docs/reference`, and there are the methods that it names and no others.
fn the_description_is_true(host: &Host) {
    let (status, body) = send_admin(host, "GET /api/v1/preheat/openapi.json HTTP/1.1", b"");
    assert_eq!(status, 200);
    let served: Value = serde_json::from_str(&body).unwrap();
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/preheat-api.json");
    let committed: Value = serde_json::from_str(&std::fs::read_to_string(committed).unwrap()).unwrap();
    assert_eq!(served, committed);
    for (path, methods) in served["paths"].as_object().unwrap() {
        let path = path.replace("{id}", "0000000000000000");
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let (status, _) = send_admin(host, &format!("{method} {path} HTTP/1.1"), b"");
            assert_eq!(methods[method.to_lowercase()].is_object(), status != 405, "{method} {path}: {status}");
        }
    }
}
