//! With MariaDB.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lapwing_discovery::registry::Place;
use lapwing_discovery::store::{HolderStore, NodeRecord, Update};
use lapwing_lab::{Database, Need, require};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;
use lapwing_plugins::tracker_store::MysqlStore;
use sqlx::{Connection as _, MySqlConnection, Row as _};

use crate::rig::Rig;
use crate::{conformance, outage};

const NEEDS: [Need; 2] = [Need::Program("mariadbd"), Need::Program("mariadb-install-db")];

fn open(server: &Database, groups: &BTreeMap<String, usize>) -> MysqlStore {
    let urls = Database::NAMES.map(|name| server.url(name));
    MysqlStore::new(&urls, groups, None).unwrap()
}

fn rig(server: &Database) -> Rig {
    let urls = Database::NAMES.map(|name| server.url(name));
    Rig::sharing(move || {
        let store = MysqlStore::new(&urls, &BTreeMap::new(), None).unwrap();
        Arc::new(store) as Arc<dyn HolderStore>
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_conforms() {
    if !require("mariadb_conforms", &NEEDS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Database::mariadb(dir.path()).unwrap();
    conformance::run(&rig(&server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trackers_outlive_a_mariadb_that_goes_away() {
    if !require("trackers_outlive_a_mariadb_that_goes_away", &NEEDS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Database::mariadb(dir.path()).unwrap();
    outage::run(&rig(&server), &mut server).await;
}

async fn count(connection: &mut MySqlConnection, table: &'static str) -> i64 {
    let text = match table {
        "nodes" => "SELECT COUNT(*) FROM lapwing_nodes",
        "gone" => "SELECT COUNT(*) FROM lapwing_gone",
        _ => "SELECT COUNT(*) FROM lapwing_holdings",
    };
    sqlx::query_scalar(text).fetch_one(connection).await.unwrap()
}

/// Nodes that hold 100 blobs each.
fn crowd(group: &str, nodes: u8) -> Vec<Update> {
    let update = |number: u8| Update {
        group: group.to_owned(),
        node: NodeRecord {
            peer: PeerId::from_bytes([number; 32]),
            instance: 1,
            seen: Duration::from_secs(1000),
            place: Place { zone: "".into(), rack: "".into(), address: [10, 0, 0, number].into() },
            port: 7081,
            seed: false,
            seed_port: 0,
        },
        holdings: (0..100u8).map(|blob| (Digest::of(&[blob]), Some(Holding::Complete))).collect(),
        whole: false,
    };
    (0..nodes).map(update).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_answers_searches_and_nothing_is_left_behind() {
    if !require("an_index_answers_searches_and_nothing_is_left_behind", &NEEDS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Database::mariadb(dir.path()).unwrap();
    let groups = BTreeMap::from([("blue".to_owned(), 0), ("red".to_owned(), 1)]);
    let store = open(&server, &groups);
    store.write(&crowd("blue", 80)).await.unwrap();
    store.write(&crowd("red", 3)).await.unwrap();
    let mut connections = Vec::new();
    for name in Database::NAMES {
        connections.push(MySqlConnection::connect(&server.url(name)).await.unwrap());
    }
    assert_eq!((count(&mut connections[0], "nodes").await, count(&mut connections[1], "nodes").await), (80, 3));

    let explain = format!("EXPLAIN {}", MysqlStore::SEARCH);
    let digest = Digest::of(&[1]);
    let query = sqlx::query(sqlx::AssertSqlSafe(explain)).bind(1u16).bind(&digest.as_bytes()[..]).bind(64u64);
    let plan = query.fetch_one(&mut connections[0]).await.unwrap();
    let (index, extra): (String, String) = (plan.get("key"), plan.get("Extra"));
    assert!(index == "by_digest" && extra.contains("Using index"), "{index}: {extra}");

    // Beats give out no numbers: there are four thousand million of them.
    for _ in 0..3 {
        store.write(&crowd("red", 3)).await.unwrap();
    }
    let last: u32 =
        sqlx::query_scalar("SELECT MAX(id) FROM lapwing_nodes").fetch_one(&mut connections[1]).await.unwrap();
    assert_eq!(last, 3);

    for _ in 0..4 {
        store.expire(Duration::from_secs(1001)).await.unwrap();
    }
    for connection in &mut connections {
        let left =
            [count(connection, "nodes").await, count(connection, "holdings").await, count(connection, "gone").await];
        assert_eq!(left, [0, 0, 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_version_are_left_alone() {
    if !require("tables_of_another_version_are_left_alone", &NEEDS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Database::mariadb(dir.path()).unwrap();
    let mut connection = MySqlConnection::connect(&server.url(Database::NAMES[0])).await.unwrap();
    let store = open(&server, &BTreeMap::from([("g".to_owned(), 0)]));
    store.write(&crowd("g", 1)).await.unwrap();
    sqlx::query("UPDATE lapwing_schema SET version = 2").execute(&mut connection).await.unwrap();
    let error =
        open(&server, &BTreeMap::from([("g".to_owned(), 0)])).write(&crowd("g", 2)).await.unwrap_err().to_string();
    assert!(error.contains("version 2") && !error.contains(Database::PASSWORD), "{error}");
    assert_eq!(count(&mut connection, "nodes").await, 1);
}
