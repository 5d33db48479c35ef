//! A push reaches the seed while it is made.

use std::net::SocketAddr;
use std::time::Instant;

use lapwing_lab::{Machine, Notify, RegistryOptions, image, require, wait};
use lapwing_p2p::digest::Digest;
use serde_json::Value;

use super::{DEADLINE, NEEDS, has_all, node, seed, send, send_admin, site};

const SECRET: &str = "a secret of the registry's own";
const PORT: u16 = 7088;

#[test]
fn a_push_fills_the_seed_so_that_the_first_pull_is_lazy_and_takes_nothing_from_the_registry() {
    if !require("a_push_fills_the_seed_so_that_the_first_pull_is_lazy_and_takes_nothing_from_the_registry", &NEEDS) {
        return;
    }
    let notify = Notify {
        url: format!("http://seed.lab:{PORT}/webhooks/distribution/registry.lab:5000"),
        authorization: format!("Bearer {SECRET}"),
    };
    let site = site("preheat-push", RegistryOptions { notify: Some(notify), ..RegistryOptions::default() });
    let file = site.network.host("files", None).unwrap().dir().join("secret");
    std::fs::write(&file, SECRET).unwrap();
    let settings = site
        .seed_settings()
        // What is built, the notification alone asks for.
        .with("lazy", "build_indexes = false")
        .with("preheat", &format!("listen = \"0.0.0.0:{PORT}\""))
        .with("preheat.webhooks.\"registry.lab:5000\"", &format!("secret_file = {file:?}"));
    let (host, seed) = seed(&site, settings);

    // Layer by layer: no manifest names this blob.
    let lone = b"a blob whose manifest is still to come".to_vec();
    let digest = Digest::of(&lone).to_string();
    site.registry.push_blob("large/one", &digest, lone.len() as u64, &lone[..]).unwrap();
    wait::until_true("the seed to have a blob before its manifest", DEADLINE, || {
        has_all(&seed, std::slice::from_ref(&digest))
    })
    .unwrap();

    let image = image::small().unwrap();
    let reference = site.registry.push(&image, "small:1").unwrap();
    let pushed = Instant::now();
    let layers: Vec<String> = image.layers.iter().map(|layer| layer.digest.clone()).collect();
    wait::until_true("the seed to have and index every layer", DEADLINE, || {
        has_all(&seed, &layers) && seed.log().unwrap().matches("built the index of a layer").count() == layers.len()
    })
    .unwrap();
    eprintln!("every layer and index was at the seed {:?} after the end of the push", pushed.elapsed());
    wait::until_true("the job to end", DEADLINE, || {
        let jobs: Value = serde_json::from_str(&seed.admin("/api/v1/preheat/jobs").unwrap().text()).unwrap();
        jobs["jobs"].as_array().unwrap().iter().any(|job| {
            job["cause"] == "push"
                && job["state"] == "done"
                && job["images"].as_array().is_some_and(|all| all.len() == 1)
        })
    })
    .unwrap();

    let (fetched, sent) = (seed.piece_bytes("origin").unwrap(), site.registry.sent_bytes().unwrap());
    let worker: Machine = site.worker("first", None, site.settings().patient()).unwrap();
    worker.containerd.pull(&reference, "lapwing").unwrap();
    let output = worker.containerd.run(&reference, "lapwing", "first", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    assert_eq!(
        node(&worker).metric("lapwing_snapshot_layers_claimed_total", "").unwrap(),
        2.0,
        "the first pull is lazy"
    );
    assert_eq!(node(&worker).piece_bytes("origin").unwrap(), 0);
    assert_eq!(seed.piece_bytes("origin").unwrap(), fetched, "nothing is fetched again");
    assert!(site.registry.sent_bytes().unwrap() - sent < 100_000, "blobs came from the registry");

    // Who has not the secret, or says too much, begins nothing.
    let before = jobs(&host);
    let webhook = SocketAddr::from((host.address(), PORT));
    let event = format!(
        r#"{{"events":[{{"action":"push","target":{{"mediaType":"application/octet-stream","digest":"{}","repository":"x/y"}}}}]}}"#,
        Digest::of(b"nowhere")
    );
    let path = "/webhooks/distribution/registry.lab:5000";
    let shown = format!("Authorization: Bearer {SECRET}");
    let giant = vec![b' '; 2 << 20];
    let cases: [(u16, String, &[u8]); 8] = [
        (401, format!("POST {path} HTTP/1.1"), event.as_bytes()),
        (401, format!("POST {path} HTTP/1.1\r\nAuthorization: Bearer {SECRET}!"), event.as_bytes()),
        (404, format!("POST /webhooks/distribution/other.lab:5000 HTTP/1.1\r\n{shown}"), event.as_bytes()),
        (404, format!("POST /api/v1/preheat/jobs HTTP/1.1\r\n{shown}"), event.as_bytes()),
        (413, format!("POST {path} HTTP/1.1\r\n{shown}"), &giant),
        (400, format!("POST {path} HTTP/1.1\r\n{shown}"), b"{\"events\":"),
        (405, format!("GET {path} HTTP/1.1\r\n{shown}"), b""),
        (200, format!("POST {path} HTTP/1.1\r\n{shown}"), b"{\"events\":[]}"),
    ];
    for (expected, head, body) in cases {
        let (status, text) = send(&worker.host, webhook, &head, body);
        assert_eq!(status, expected, "{head}: {text}");
    }
    assert_eq!(jobs(&host), before);
    assert!(!seed.log().unwrap().contains(SECRET), "the secret is in the log");
    // The same with the secret is heard, and of no blob that the registry does not have.
    let (status, _) = send(&worker.host, webhook, &format!("POST {path} HTTP/1.1\r\n{shown}"), event.as_bytes());
    assert_eq!((status, jobs(&host)), (200, before + 1));
}

fn jobs(host: &lapwing_lab::Host) -> usize {
    let (status, body) = send_admin(host, "GET /api/v1/preheat/jobs HTTP/1.1", b"");
    assert_eq!(status, 200);
    let jobs: Value = serde_json::from_str(&body).unwrap();
    jobs["jobs"].as_array().unwrap().len()
}
