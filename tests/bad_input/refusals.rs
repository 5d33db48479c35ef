//! Registries that refuse or are not there.

use std::net::SocketAddr;

use lapwing_lab::{
    BASIC_PASSWORD, BASIC_USER, LapwingSettings, Machine, MachineOptions, Registry, RegistryOptions, check, http_get,
    image, output, require, wait,
};

use super::{NEEDS, PATIENCE, layer_bytes, logged, mirrored_bytes, network, registry, small};

/// `lapwing:lapwing-test` in base64.
const RIGHT: &str = "Authorization: Basic bGFwd2luZzpsYXB3aW5nLXRlc3Q=";
/// `lapwing:guessed` in base64.
const WRONG: &str = "Authorization: Basic bGFwd2luZzpndWVzc2Vk";

fn private_registry(network: &lapwing_lab::Network) -> Registry {
    Registry::start(
        &network.host("registry", None).unwrap(),
        RegistryOptions { basic_auth: true, ..RegistryOptions::default() },
    )
    .unwrap()
}

#[test]
fn a_registry_that_refuses_is_heard_through_the_mirror() {
    if !require("a_registry_that_refuses_is_heard_through_the_mirror", &NEEDS) {
        return;
    }
    let network = network("refused");
    let registry = private_registry(&network);
    let reference = small(&registry);
    let layout = image::small().unwrap();
    let options = MachineOptions::lapwing(LapwingSettings::up());
    let machine = Machine::start(&network, "w1", &registry, options).unwrap();
    let node = machine.lapwing.as_ref().unwrap();
    let pull = |user: Option<&str>| {
        let mut ctr = machine.containerd.ctr().unwrap();
        ctr.args(["images", "pull", "--snapshotter", "lapwing", "--hosts-dir"]).arg(machine.containerd.hosts_dir());
        output(ctr.args(user.map(|user| format!("--user={user}"))).arg(&reference)).unwrap()
    };
    for user in [None, Some("lapwing:guessed")] {
        let refused = pull(user);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{user:?}");
        assert!(said.contains("401 Unauthorized") || said.contains("authorization failed"), "{user:?}: {said}");
    }
    // ctr names neither registry nor status to those who bring nothing; the node's log does.
    logged(node, &["mirror answers", &reference, "status=401"]);
    assert_eq!(mirrored_bytes(node), 0.0, "nothing was given to those who were refused");
    assert!(node.metric("lapwing_mirror_answers_total", "status=\"401\"").unwrap() >= 2.0);

    let granted = pull(Some(&format!("{BASIC_USER}:{BASIC_PASSWORD}")));
    assert!(granted.status.success(), "{}", String::from_utf8_lossy(&granted.stderr));
    assert!(mirrored_bytes(node) >= layer_bytes(&layout), "the image came through the mirror");
    a_cached_blob_is_no_permission(&machine, &registry, &layout);
}

/// The node holds the layer now. It is given on the registry's word alone, and without fetching it again.
fn a_cached_blob_is_no_permission(machine: &Machine, registry: &Registry, layout: &image::Layout) {
    let mirror = SocketAddr::from(([127, 0, 0, 1], 7080));
    let path = format!("/v2/lab/small/blobs/{}?ns={}", layout.layers[0].digest, registry.name());
    let ask = |headers: &[&str]| machine.host.within(|| http_get(mirror, &path, headers)).unwrap();
    let sent = registry.sent_bytes().unwrap();
    for headers in [&[][..], &[WRONG]] {
        let refused = ask(headers);
        assert_eq!(refused.status, 401, "{}", refused.text());
        assert!(refused.head.to_ascii_lowercase().contains("www-authenticate: basic realm"), "{}", refused.head);
        assert!(refused.text().contains(&registry.name()) && refused.text().contains("401"), "{}", refused.text());
    }
    let granted = ask(&[RIGHT]);
    assert_eq!((granted.status, granted.body.len() as u64), (200, layout.layers[0].size));
    assert_eq!(ask(&[]).status, 401, "a grant is the grant of who asked");
    let sent = registry.sent_bytes().unwrap() - sent;
    assert!(sent < 100_000, "{sent} bytes were sent to ask for permission");
}

#[test]
fn credentials_of_cri_reach_the_registry_through_the_mirror() {
    if !require("credentials_of_cri_reach_the_registry_through_the_mirror", &NEEDS) {
        return;
    }
    let network = network("creds");
    let registry = private_registry(&network);
    let reference = small(&registry);
    let options = MachineOptions::lapwing(LapwingSettings::up());
    let machine = Machine::start(&network, "w1", &registry, options).unwrap();
    let node = machine.lapwing.as_ref().unwrap();
    let pull =
        |creds: &[&str]| output(machine.containerd.crictl().unwrap().arg("pull").args(creds).arg(&reference)).unwrap();
    for creds in [&[][..], &["--creds", "lapwing:guessed"]] {
        let refused = pull(creds);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{creds:?}");
        assert!(said.contains(&registry.name()), "{creds:?}: {said}");
        assert!(said.contains("401 Unauthorized") || said.contains("authorization failed"), "{creds:?}: {said}");
    }
    let right = format!("{BASIC_USER}:{BASIC_PASSWORD}");
    let granted = pull(&["--creds", &right]);
    assert!(granted.status.success(), "{}", String::from_utf8_lossy(&granted.stderr));
    assert!(mirrored_bytes(node) >= layer_bytes(&image::small().unwrap()), "the image came through the mirror");
}

#[test]
fn a_registry_that_is_down_at_the_start_is_found_when_it_is_back() {
    if !require("a_registry_that_is_down_at_the_start_is_found_when_it_is_back", &NEEDS) {
        return;
    }
    let network = network("down");
    let registry = registry(&network);
    let reference = small(&registry);
    registry.host().set_link(false).unwrap();
    let options = MachineOptions::lapwing(LapwingSettings::up());
    let machine = Machine::start(&network, "w1", &registry, options).unwrap();
    let node = machine.lapwing.as_ref().unwrap();
    assert_eq!(node.admin("/readyz").unwrap().status, 200);
    let path = format!("/v2/lab/small/manifests/1?ns={}", registry.name());
    let mirror = SocketAddr::from(([127, 0, 0, 1], 7080));
    let refused = machine
        .host
        .within(|| wait::until("an answer", PATIENCE, || Ok(wait::Poll::retry(http_get(mirror, &path, &[])))));
    let refused = refused.unwrap();
    assert_eq!(refused.status, 502, "{}", refused.text());
    assert!(refused.text().contains(&registry.name()), "{}", refused.text());
    logged(node, &["mirror sends the client on", &registry.name()]);

    registry.host().set_link(true).unwrap();
    wait::until("the pull to work again", PATIENCE, || {
        let mut ctr = machine.containerd.ctr()?;
        ctr.args(["images", "pull", "--snapshotter", "lapwing", "--hosts-dir"]).arg(machine.containerd.hosts_dir());
        Ok(wait::Poll::retry(check(ctr.arg(&reference))))
    })
    .unwrap();
    let output = machine.containerd.run(&reference, "lapwing", "back", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    assert!(mirrored_bytes(node) >= layer_bytes(&image::small().unwrap()), "the image came through the mirror");
}
