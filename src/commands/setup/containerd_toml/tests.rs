use super::*;
use toml::Table as Plain;

/// `containerd config default` of Debian's 1.6.20 and of 2.3.4.
const DEFAULT_1: &str = include_str!("../fixtures/default-1.6.toml");
const DEFAULT_2: &str = include_str!("../fixtures/default-2.3.toml");

fn wanted(major: u32, minor: u32) -> Wanted {
    let defaults = crate::config::Config::default();
    Wanted {
        containerd: ContainerdVersion { major, minor },
        plugin: Some(Plugin { socket: defaults.snapshotter.socket, root: defaults.root, remap_ids: true }),
        certs_dir: None,
        keep_snapshotter: false,
    }
}

fn edited(text: &str, wanted: &Wanted) -> Edited {
    let once = edit(text, wanted).unwrap();
    assert_eq!(edit(&once.text, wanted).unwrap().text, once.text, "a second time changes nothing");
    once
}

fn plain(text: &str) -> Plain {
    toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn at<'a>(table: &'a Plain, path: &[&str]) -> &'a toml::Value {
    let (last, front) = path.split_last().unwrap();
    let table = front.iter().fold(table, |table, key| table[*key].as_table().unwrap());
    &table[*last]
}

/// Lines that are in only one of two texts.
fn changed(before: &str, after: &str) -> (Vec<String>, Vec<String>) {
    let only = |a: &str, b: &str| {
        let b: Vec<_> = b.lines().collect();
        a.lines().filter(|line| !line.is_empty() && !b.contains(line)).map(|line| line.trim().to_owned()).collect()
    };
    (only(before, after), only(after, before))
}

#[test]
fn ids_are_mapped_where_the_kernel_can_and_other_capabilities_stay() {
    let capabilities = |before: &str, wanted: &Wanted| {
        let table = plain(&edited(before, wanted).text);
        at(&table, &["proxy_plugins", "lapwing"]).get("capabilities").map(|listed| listed.as_array().unwrap().clone())
    };
    let mut old_kernel = wanted(2, 1);
    old_kernel.plugin.as_mut().unwrap().remap_ids = false;
    assert_eq!(capabilities("version = 3", &wanted(2, 1)), Some(vec!["remap-ids".into()]));
    assert_eq!(capabilities("version = 3", &old_kernel), None);
    assert_eq!(capabilities("version = 2", &wanted(1, 7)), None, "1.7 has no such key");
    let own = "version = 3\n[proxy_plugins.lapwing]\n  capabilities = [\"mine\"]\n";
    assert_eq!(capabilities(own, &wanted(2, 1)), Some(vec!["mine".into(), "remap-ids".into()]));
}

/// Everything that the shipped file sets is set, and nothing else is, where there was nothing.
#[test]
fn an_empty_file_becomes_what_contrib_shows() {
    let mut shipped = plain(include_str!("../../../../contrib/containerd/config-1.7.toml"));
    assert_eq!(plain(&edited("", &wanted(1, 7)).text), shipped);
    shipped["proxy_plugins"]["lapwing"].as_table_mut().unwrap().remove("exports");
    assert_eq!(plain(&edited("", &wanted(1, 6)).text), shipped);

    let shipped = plain(include_str!("../../../../contrib/containerd/config-2.x.toml"));
    assert_eq!(plain(&edited("# what I know\n", &wanted(2, 1)).text), shipped);
    assert!(edited("# what I know", &wanted(2, 1)).text.starts_with("# what I know\nversion = 3\n"));
}

#[test]
fn the_default_of_1_6_keeps_everything_but_what_must_change() {
    let after = edited(DEFAULT_1, &wanted(1, 6));
    let (gone, new) = changed(DEFAULT_1, &after.text);
    assert_eq!(gone, ["disable_snapshot_annotations = true", "snapshotter = \"overlayfs\"", "config_path = \"\""]);
    let expected = [
        "disable_snapshot_annotations = false",
        "snapshotter = \"lapwing\"",
        "config_path = \"/etc/containerd/certs.d\"",
        "[proxy_plugins.lapwing]",
        "type = \"snapshot\"",
        "address = \"/run/lapwing/snapshotter.sock\"",
    ];
    assert_eq!(new, expected);
    assert!(after.text.contains("\n      snapshotter = \"lapwing\"\n"), "the indentation stays");
    assert_eq!(after.certs_dir, Path::new(CERTS_DIR));
    assert!(after.notes.iter().any(|note| note.contains("was overlayfs")), "{:?}", after.notes);
    plain(&after.text);
}

#[test]
fn the_default_of_2_3_keeps_everything_but_what_must_change() {
    let after = edited(DEFAULT_2, &wanted(2, 3));
    let (gone, new) = changed(DEFAULT_2, &after.text);
    assert_eq!(gone, ["snapshotter = 'overlayfs'", "config_path = ''"]);
    assert_eq!(new.iter().filter(|line| line.ends_with("unpack_config]]")).count(), 3, "{new:?}");
    let table = plain(&after.text);
    let images = at(&table, &["plugins", CRI_IMAGES]);
    assert_eq!(images["snapshotter"].as_str(), Some("lapwing"));
    assert_eq!(images["disable_snapshot_annotations"].as_bool(), Some(true), "with false CRI would pull by itself");
    assert_eq!(images["registry"]["config_path"].as_str(), Some(CERTS_DIR));
    let plugin = at(&table, &["proxy_plugins", "lapwing"]);
    assert_eq!(plugin["exports"]["enable_remote_snapshot_annotations"].as_str(), Some("true"));
    let list = at(&table, &["plugins", TRANSFER, "unpack_config"]).as_array().unwrap();
    let names: Vec<_> = list.iter().map(|entry| entry["snapshotter"].as_str().unwrap()).collect();
    assert_eq!(names, ["lapwing", "overlayfs", "erofs"]);
    assert_eq!(list[2]["optional"].as_bool(), Some(true));
    let differs: Vec<_> = list.iter().map(|entry| entry["differ"].as_str().unwrap()).collect();
    assert_eq!(differs, ["lapwing-diff", "walking", "erofs"]);
    assert_eq!(at(&table, &["proxy_plugins", "lapwing-diff", "address"]), &plugin["address"]);
    // One table stays one table: its own keys are not scattered.
    assert_eq!(table["plugins"][TRANSFER]["max_concurrent_downloads"].as_integer(), Some(3));
    assert_eq!(after.imports, ["/etc/containerd/conf.d/*.toml"]);
}

#[test]
fn a_file_of_version_2_on_2_x_gets_the_names_of_version_2() {
    let text = "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"p\" # mine\n\
                [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n";
    let after = edited(text, &wanted(2, 1));
    let table = plain(&after.text);
    assert!(changed(text, &after.text).0.is_empty(), "{}", after.text);
    assert!(table["plugins"].get(CRI_IMAGES).is_none());
    let containerd = at(&table, &["plugins", CRI_V1, "containerd"]).as_table().unwrap();
    assert_eq!(containerd["snapshotter"].as_str(), Some("lapwing"));
    assert!(!containerd.contains_key("disable_snapshot_annotations"), "the transfer service says it");
    assert!(at(&table, &["plugins", TRANSFER, "unpack_config"]).is_array());
    let older = plain(&edited(text, &wanted(2, 0)).text);
    assert_eq!(at(&older, &["plugins", CRI_V1, "containerd", "disable_snapshot_annotations"]).as_bool(), Some(false));
}

/// Where containerd 2.x would not take the old name over.
#[test]
fn a_file_of_version_2_without_runtimes_gets_the_new_section_on_2_x() {
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"overlayfs\"\n";
    let table = plain(&edited(text, &wanted(2, 3)).text);
    assert_eq!(at(&table, &["plugins", CRI_IMAGES, "snapshotter"]).as_str(), Some("lapwing"));
    assert_eq!(at(&table, &["plugins", CRI_V1, "registry", "config_path"]).as_str(), Some(CERTS_DIR));
    let table = plain(&edited(text, &wanted(1, 7)).text);
    assert_eq!(at(&table, &["plugins", CRI_V1, "containerd", "snapshotter"]).as_str(), Some("lapwing"));
}

#[test]
fn where_cri_pulls_by_itself_it_says_the_layers_itself() {
    let text = format!("version = 3\n[plugins.'{CRI_IMAGES}']\n  use_local_image_pull = true\n");
    let table = plain(&edited(&text, &wanted(2, 3)).text);
    assert_eq!(at(&table, &["plugins", CRI_IMAGES, "disable_snapshot_annotations"]).as_bool(), Some(false));
}

#[test]
fn the_operators_unpack_list_is_added_to() {
    let tables = format!(
        "version = 3\n[[plugins.'{TRANSFER}'.unpack_config]] # first\n  platform = \"linux\"\n  snapshotter = \"native\"\n"
    );
    let inline = format!(
        "version = 3\n[plugins.'{TRANSFER}']\n  unpack_config = [{{platform = \"linux\", snapshotter = \"native\"}}] # first\n"
    );
    for text in [tables, inline] {
        let after = edited(&text, &wanted(2, 3));
        let table = plain(&after.text);
        let list = at(&table, &["plugins", TRANSFER, "unpack_config"]).as_array().unwrap();
        let names: Vec<_> = list.iter().map(|entry| entry["snapshotter"].as_str().unwrap()).collect();
        assert_eq!(names, ["native", "lapwing"], "the operator's own stays the first match");
        assert!(after.text.contains("# first"));
        assert!(after.notes.iter().any(|note| note.contains("does not list overlayfs")), "{:?}", after.notes);
    }
}

#[test]
fn an_unpack_entry_of_before_there_was_a_differ_gets_it_and_the_operators_own_stays() {
    let text = |differ: &str, inline: bool| match inline {
        true => format!(
            "version = 3\n[plugins.'{TRANSFER}']\n  unpack_config = [{{platform = \"linux\", snapshotter = \"lapwing\"{}}}]\n",
            if differ.is_empty() { String::new() } else { format!(", differ = {differ:?}") }
        ),
        false => format!(
            "version = 3\n[[plugins.'{TRANSFER}'.unpack_config]]\n  platform = \"linux\"\n  snapshotter = \"lapwing\"\n{}",
            if differ.is_empty() { String::new() } else { format!("  differ = {differ:?}\n") }
        ),
    };
    for (before, expected) in [("", "lapwing-diff"), ("walking", "walking")] {
        for inline in [true, false] {
            let table = plain(&edited(&text(before, inline), &wanted(2, 3)).text);
            let list = at(&table, &["plugins", TRANSFER, "unpack_config"]).as_array().unwrap();
            assert_eq!(list.len(), 1);
            assert_eq!(list[0]["differ"].as_str(), Some(expected));
        }
    }
}

#[test]
fn dotted_keys_and_inline_tables_are_understood() {
    let dotted = "version = 3\nproxy_plugins.lapwing.type = \"snapshot\" # mine\nproxy_plugins.other.type = \"snapshot\"\n\
                  [plugins]\n'io.containerd.cri.v1.images'.registry.config_path = \"/x\" # also\n";
    let inline = "version = 3\nproxy_plugins = { lapwing = { type = \"diff\" }, other = { type = \"snapshot\" } }\n\
                  [plugins.'io.containerd.cri.v1.images']\nregistry = { config_path = \"/x\" }\n";
    for text in [dotted, inline] {
        let after = edited(text, &wanted(2, 3));
        let table = plain(&after.text);
        let plugin = at(&table, &["proxy_plugins", "lapwing"]);
        assert_eq!(plugin["type"].as_str(), Some("snapshot"), "{}", after.text);
        assert_eq!(plugin["address"].as_str(), Some("/run/lapwing/snapshotter.sock"));
        assert_eq!(at(&table, &["proxy_plugins", "other", "type"]).as_str(), Some("snapshot"));
        assert_eq!(at(&table, &["plugins", CRI_IMAGES, "snapshotter"]).as_str(), Some("lapwing"));
        assert_eq!(after.certs_dir, Path::new("/x"));
        assert_eq!(text.matches('#').count(), after.text.matches('#').count());
    }
}

#[test]
fn the_directory_with_hosts_files_is_the_one_that_cri_reads() {
    let text = format!("version = 3\n[plugins.'{CRI_IMAGES}'.registry]\n  config_path = \"/a:/b\"\n");
    assert_eq!(edited(&text, &wanted(2, 3)).certs_dir, Path::new("/a"));
    let asking = |dir: &str| Wanted { certs_dir: Some(dir.into()), ..wanted(2, 3) };
    assert_eq!(edited(&text, &asking("/b")).certs_dir, Path::new("/b"));
    assert!(edit(&text, &asking("/c")).unwrap_err().contains("--certs-dir"));
    let fresh = edited("version = 3\n", &asking("/c"));
    assert_eq!(fresh.certs_dir, Path::new("/c"));
    assert_eq!(at(&plain(&fresh.text), &["plugins", CRI_IMAGES, "registry", "config_path"]).as_str(), Some("/c"));
}

#[test]
fn what_containerd_would_not_start_with_is_refused_with_a_remedy() {
    let mirrors = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\n  endpoint = [\"https://m\"]\n";
    let tls = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"r\".tls]\n  ca_file = \"/x\"\n";
    let cases = [
        ("disabled_plugins = [\"cri\"]\n", "version = 2"),
        ("version = 1\n", "version = 2"),
        ("version = 3\n", "this is 1.7"),
        ("version = 9\n", "not known"),
        ("version = \"2\"\n", "not a number"),
        ("version = 2\nproxy_plugins = 3\n", "proxy_plugins is not a table"),
        ("version = 2\n\n[x\n", "line 3"),
        (mirrors, "hosts.toml"),
        (tls, "hosts.toml"),
    ];
    for (text, hint) in cases {
        let error = edit(text, &wanted(1, 7)).unwrap_err();
        assert!(error.contains(hint), "{text}: {error}");
    }
    assert!(edit("version = 3\n", &wanted(2, 0)).is_ok());
}

#[test]
fn what_is_wanted_less_is_written_less() {
    let keep = Wanted { keep_snapshotter: true, ..wanted(2, 3) };
    assert_eq!(
        at(&plain(&edited(DEFAULT_2, &keep).text), &["plugins", CRI_IMAGES, "snapshotter"]).as_str(),
        Some("overlayfs")
    );
    let mirror_alone = Wanted { plugin: None, ..wanted(2, 3) };
    let (gone, new) = changed(DEFAULT_2, &edited(DEFAULT_2, &mirror_alone).text);
    assert_eq!((gone, new), (vec!["config_path = ''".to_owned()], vec![format!("config_path = {CERTS_DIR:?}")]));
}

#[test]
fn disabled_plugins_are_told() {
    let text =
        format!("version = 3\ndisabled_plugins = [\"{CRI_IMAGES}\", \"{TRANSFER}\", \"io.containerd.nri.v1.nri\"]\n");
    let notes = edited(&text, &wanted(2, 3)).notes;
    assert_eq!(notes.iter().filter(|note| note.starts_with("disabled_plugins")).count(), 2, "{notes:?}");
}

#[test]
fn sections_of_imported_files_are_found() {
    assert_eq!(imported("[proxy_plugins.lapwing]\n[plugins.'io.containerd.cri.v1.images'.registry]\n").len(), 2);
    assert!(imported("[plugins.'io.containerd.nri.v1.nri']\n").is_empty());
    assert_eq!(imported("[").len(), 1);
}
