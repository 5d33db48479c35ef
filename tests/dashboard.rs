//! The dashboard in a real browser: a pull begins, is seen with its sources, and ends; nothing breaks the page's policy.
//!
//! With `LAPWING_TEST_PICTURES=<directory>` the pictures of docs/dashboard.md are written there.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use lapwing_lab::{Host, Lab, Lapwing, LapwingSettings, Mbit, Need, Registry, RegistryOptions, image, require};

#[path = "dashboard/browser.rs"]
mod browser;

use browser::Browser;

const CHROMIUM: &str = "chromium";
/// What the page would hold if a name had become HTML.
const ZONE: &str = "<b/id=evil>z2</b>";

fn pull(host: &Host, node: &Lapwing, registry: &str, layout: &image::Layout) {
    let url = format!("http://127.0.0.1:7080/v2/team/app/manifests/1.0?ns={registry}");
    host.check("curl", &["-sSf", "-H", "Accept: application/vnd.oci.image.manifest.v1+json", &url]).unwrap();
    for layer in &layout.layers {
        assert_eq!(node.mirror_blob(registry, "team/app", &layer.digest).unwrap().status, 200);
    }
}

fn keep(name: &str, picture: &[u8]) {
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{name}: {} bytes", picture.len());
    if let Some(dir) = std::env::var_os("LAPWING_TEST_PICTURES") {
        std::fs::write(std::path::Path::new(&dir).join(name), picture).unwrap();
    }
}

#[test]
fn a_browser_sees_a_pull_happen_and_end() {
    const NAME: &str = "a_browser_sees_a_pull_happen_and_end";
    let programs = ["docker-registry", "skopeo", "curl", "tc", CHROMIUM].map(Need::Program);
    if !require(NAME, &[&[Need::Root, Need::Disk], &programs[..]].concat()) {
        return;
    }
    let network = Lab::new("dashboard").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let layout = image::noise(31, &[3, 5]).unwrap().layout;
    registry.push(&layout, "team/app:1.0").unwrap();
    let tracker_host = network.host("tracker", None).unwrap();
    let tracker = LapwingSettings::tracker().with("admin", "listen = \"0.0.0.0:7082\"");
    let tracker = Lapwing::start(&tracker_host, tracker).unwrap();
    let settings =
        LapwingSettings::node(&[tracker.tracker_address()]).registry(&registry.name()).with("lazy", "enabled = false");
    let first_host = network.host("first", None).unwrap();
    let first = Lapwing::start(&first_host, settings.clone().with("tracker", "zone = \"z1\"")).unwrap();
    pull(&first_host, &first, &registry.name(), &layout);
    // Slow enough to be seen: some fifteen seconds.
    let host = network.host("second", Some(Mbit(5))).unwrap();
    let settings = settings.with("tracker", &format!("zone = {ZONE:?}"));
    let node = Lapwing::start(&host, settings).unwrap();

    let mut browser = Browser::start(&host, CHROMIUM);
    browser.prefer("light");
    browser.go("http://127.0.0.1:7082/dashboard/");
    browser.wait_for("the page to be live", "document.getElementById('connection').textContent === 'live'");
    browser
        .wait_for("no pull yet", "document.getElementById('pulls')?.parentElement.innerText.includes('Nothing came')");
    std::thread::scope(|scope| {
        let pulling = scope.spawn(|| pull(&host, &node, &registry.name(), &layout));
        let pulls = "document.getElementById('pulls').parentElement.innerText";
        browser.wait_for(
            "the pull to be seen",
            &format!("{pulls}.includes('team/app:1.0') && {pulls}.includes('running')"),
        );
        // From other zones, by what the picture's own description says.
        let far = "[...document.querySelectorAll('#flame title')].some((title) => /^peers_far: .* MiB/.test(title.textContent))";
        browser.wait_for("bytes of the other zone", far);
        browser.wait_for("a rate", "/MiB\\/s|KiB\\/s/.test(document.querySelector('#tiles .tile b').textContent)");
        keep("node-light.png", &browser.picture(1200, 1000));
        pulling.join().unwrap();
        browser.wait_for("the pull to end", &format!("!{pulls}.includes('running')"));
    });
    let came = browser.ask("document.getElementById('tiles').innerText").as_str().unwrap().to_owned();
    let counted = node.piece_bytes("peer").unwrap() as f64 / 1_048_576.0;
    assert!(came.contains(&format!("{counted:.1} MiB since the start")), "{counted}: {came}");
    browser.wait_for("the cause", "document.getElementById('causes')?.innerText.includes(\"the peers' upload\")");

    browser.wait_for(
        "the end in the explanation",
        "document.getElementById('explained').parentElement.innerText.includes('took')",
    );

    // By the keyboard alone: to the theme's button, twice.
    browser.ask("document.body.focus()");
    let focused = "document.activeElement.id";
    for _ in 0..5 {
        if browser.ask(focused) == "theme" {
            break;
        }
        browser.press("Tab", 9, "");
    }
    assert_eq!(browser.ask(focused), "theme");
    let theme = "document.documentElement.dataset.theme ?? 'system'";
    for expected in ["light", "dark"] {
        browser.press("Enter", 13, "\r");
        assert_eq!(browser.ask(theme), expected);
    }
    assert_eq!(browser.ask("getComputedStyle(document.body).backgroundColor"), "rgb(16, 23, 25)");
    keep("node-dark.png", &browser.picture(1200, 1000));
    browser.go("http://127.0.0.1:7082/dashboard/");
    browser.wait_for("the theme to be remembered", &format!("({theme}) === 'dark'"));
    // A button of the table keeps the focus though the table is made anew each second.
    browser.wait_for("the pull's button", "document.querySelector('[data-key^=\"pull \"]') !== null");
    browser.ask("document.querySelector('[data-key^=\"pull \"]').focus(); window.old = document.activeElement; true");
    browser.wait_for("the table to be made anew", "!window.old.isConnected");
    assert!(browser.ask("document.activeElement.dataset.key").as_str().unwrap().starts_with("pull "));

    browser.prefer("dark");
    browser.go(&format!("http://{}:7082/dashboard/", tracker_host.address()));
    browser.wait_for("both nodes on the map", "document.querySelectorAll('.dots li').length === 2");
    let zones = browser.ask("[...document.querySelectorAll('.zone h3')].map((zone) => zone.textContent).join()");
    assert!(zones.as_str().unwrap().contains(&format!("{ZONE} (1)")), "{zones}");
    assert_eq!(browser.ask("document.getElementById('evil') === null"), true);
    assert_eq!(
        browser.ask("getComputedStyle(document.body).backgroundColor"),
        "rgb(16, 23, 25)",
        "as the system has it"
    );
    keep("tracker-dark.png", &browser.picture(1200, 620));
    browser.prefer("light");
    keep("tracker-light.png", &browser.picture(1200, 620));

    // What would break the policy does so, and is seen: the checks above are not blind.
    assert!(browser.complaints.is_empty(), "{:#?}", browser.complaints);
    browser.ask("document.body.setAttribute('style', 'color: red'); true");
    browser.ask("const script = document.createElement('script'); script.textContent = 'window.evil = 1'; document.body.append(script); true");
    assert_eq!(browser.ask("window.evil === undefined"), true);
    browser.wait_for("a complaint", "true");
    assert!(
        browser.complaints.iter().any(|complaint| complaint.contains("Content Security Policy")),
        "{:?}",
        browser.complaints
    );
    browser.close();
}
