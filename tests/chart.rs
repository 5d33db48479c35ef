//! The Helm chart and the plain manifests: objects that the API server's own code takes, with configurations that Lapwing takes.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use lapwing_lab::{Lab, Need, check, lapwing_binary, module_tool, output, require};

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn chart() -> PathBuf {
    tree().join("contrib/kubernetes/chart")
}

fn tool(program: &str) -> Command {
    Command::new(module_tool("kubernetes", program).unwrap())
}

/// Renders the chart with these settings; the outcome is what helm printed.
fn rendered(settings: &[&str]) -> Result<String, String> {
    let mut helm = tool("helm");
    helm.args(["template", "lapwing"]).arg(chart()).args(["--namespace", "lapwing", "--kube-version", "1.36.3"]);
    for setting in settings {
        helm.args(["--set", setting]);
    }
    let result = output(&mut helm).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if result.status.success() { Ok(text(&result.stdout)) } else { Err(text(&result.stderr)) }
}

/// The daemons' configurations in rendered manifests.
fn configurations(manifests: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = manifests.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "lapwing.toml: |" {
            let toml: Vec<&str> = lines
                .by_ref()
                .map_while(|line| if line.is_empty() { Some("") } else { line.strip_prefix("    ") })
                .collect();
            found.push(toml.join("\n"));
        }
    }
    found
}

const SECRET: &str = "identity.secretName=lapwing-identity";
const MEMBERS: &str = "identity.members={spiffe://prod.example/lapwing}";

#[test]
fn the_chart_makes_objects_that_the_api_server_takes_and_configurations_that_lapwing_takes() {
    let name = "the_chart_makes_objects_that_the_api_server_takes_and_configurations_that_lapwing_takes";
    if !require(name, &[Need::Program("go")]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    check(
        tool("helm")
            .args(["lint", "--strict", "--set", "identity.insecure=true", "--kube-version", "1.36.3"])
            .arg(chart()),
    )
    .unwrap();
    let variants: [(&[&str], usize); 5] = [
        (&["identity.insecure=true"], 2),
        (&[SECRET, MEMBERS, "seed.enabled=true", "seed.registrySecret=r", "node.registrySecret=r"], 3),
        (&[SECRET, MEMBERS, "seed.enabled=true", "seed.storage.className=fast", "node.lazy=true", "node.zone=z1"], 3),
        (
            &[
                SECRET,
                MEMBERS,
                "tracker.enabled=false",
                "tracker.addresses={10.0.0.1:7070}",
                "networkPolicy.enabled=false",
            ],
            1,
        ),
        (
            &[
                "identity.insecure=true",
                "node.enabled=false",
                "tracker.extraConfig=[origin]\ncopies = 2",
                "image.pullSecrets[0].name=p",
            ],
            1,
        ),
    ];
    for (settings, daemons) in variants {
        let manifests = rendered(settings).unwrap();
        let file = scratch.path().join("manifests.yaml");
        std::fs::write(&file, &manifests).unwrap();
        check(tool("kubecheck").arg(&file)).unwrap();
        let configurations = configurations(&manifests);
        assert_eq!(configurations.len(), daemons, "{settings:?}");
        for toml in configurations {
            let file = scratch.path().join("lapwing.toml");
            std::fs::write(&file, &toml).unwrap();
            check(Command::new(lapwing_binary().unwrap()).args(["config", "--check"]).arg(&file)).unwrap();
        }
    }
}

#[test]
fn the_chart_refuses_what_cannot_be_meant() {
    if !require("the_chart_refuses_what_cannot_be_meant", &[Need::Program("go")]) {
        return;
    }
    for (settings, word) in [
        (&[][..], "who belongs to the cluster"),
        (&["identity.insecure=true", "tracker.replicas=9"], "replicas"),
        (&["identity.insecure=true", "node.quota=lots"], "quota"),
        (&["identity.insecure=true", "nodes.lazy=true"], "nodes"),
        (&[SECRET, "identity.members={prod}"], "members"),
    ] {
        let refused = rendered(settings).unwrap_err();
        assert!(refused.contains(word), "{settings:?}: {refused}");
    }
}

#[test]
fn the_validator_of_objects_refuses_what_an_api_server_would() {
    if !require("the_validator_of_objects_refuses_what_an_api_server_would", &[Need::Program("go")]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let good = rendered(&["identity.insecure=true"]).unwrap();
    for (from, to) in [
        ("hostNetwork: true", "hostNetworks: true"),
        ("periodSeconds: 2", "periodSeconds: -2"),
        ("policyTypes: [Ingress, Egress]", "policyTypes: [Inwards]"),
    ] {
        assert!(good.contains(from));
        let file = scratch.path().join("bad.yaml");
        std::fs::write(&file, good.replacen(from, to, 1)).unwrap();
        let checked = output(tool("kubecheck").arg(&file)).unwrap();
        assert_eq!(checked.status.code(), Some(1), "{to} was taken");
    }
}

#[test]
fn the_plain_manifests_are_those_of_the_chart() {
    if !require("the_plain_manifests_are_those_of_the_chart", &[Need::Program("go")]) {
        return;
    }
    let current = check(&mut Command::new(tree().join("contrib/setup/manifests.sh"))).unwrap();
    let committed = tree().join("contrib/kubernetes/lapwing.yaml");
    assert!(
        current == std::fs::read_to_string(&committed).unwrap(),
        "contrib/kubernetes/lapwing.yaml is stale; renew it: contrib/setup/manifests.sh >contrib/kubernetes/lapwing.yaml"
    );
    check(tool("kubecheck").arg(committed)).unwrap();
}

#[test]
fn the_daemons_run_with_the_rights_of_the_pods_and_a_mounted_certificate() {
    let needs = [Need::Root, Need::Program("openssl"), Need::Program("setpriv"), Need::Program("curl")];
    if !require("the_daemons_run_with_the_rights_of_the_pods_and_a_mounted_certificate", &needs) {
        return;
    }
    let lab = Lab::new("pods").unwrap();
    let mut run = Command::new("unshare");
    run.arg("--net").arg(tree().join("tests/chart/daemons.sh")).arg(tree().join("contrib/kubernetes/lapwing.yaml"));
    assert!(check(run.arg(lapwing_binary().unwrap()).arg(lab.dir())).unwrap().ends_with("all are members\n"));
}
