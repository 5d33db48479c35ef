//! A cluster with an authority: who joins, who may call, who is another, who is out.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as the test itself may")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapwing_discovery::authority::tokens::{self, Token};
use lapwing_discovery::authority::{AskError, Authority, Membership, join, renew};
use lapwing_discovery::server::{Access, Tracker, serve_members};
use lapwing_discovery::{ClientConfig, TrackerClient};
use lapwing_evidence::{Evidence, count};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Discovery as _, Holding};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::membership::{
    Authorities, Credentials, Issuer, Member, Role, Roles, Rules, Shown, write_certificates,
};
use lapwing_p2p::tls::{Protocol, Tls};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

struct Cluster {
    directory: tempfile::TempDir,
    authority: Arc<Authority>,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn identity() -> Arc<Identity> {
    Arc::new(Identity::generate().unwrap())
}

fn credentials(membership: Membership, identity: &Arc<Identity>) -> Arc<Credentials> {
    let authorities = Authorities::new(membership.authorities, Rules::default()).unwrap();
    Arc::new(Credentials::new(Shown::with_identity(membership.certificates, identity).unwrap(), authorities).unwrap())
}

impl Cluster {
    async fn start(lifetime: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Issuer::create(&directory.path().join("authority"), "prod.example").unwrap();
        Self::start_in(directory, lifetime).await
    }

    async fn start_in(directory: tempfile::TempDir, lifetime: Duration) -> Self {
        let path = directory.path().join("authority");
        let authority = Arc::new(Authority::open(&path, lifetime).unwrap());
        let own = identity();
        let roles = Roles::of([Role::Tracker]);
        let member = Member { cluster: String::new(), group: "trackers".into(), roles, peer: None };
        let forever = Authority::open(&path, Duration::from_secs(3600)).unwrap();
        let credentials = credentials(forever.certify(&member, own.id()).unwrap(), &own);
        let tls = Some(Tls::new(Protocol::Calls, &own, Some(&credentials)).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let access = Access { tls, authority: Some(Arc::clone(&authority)) };
        let serving = serve_members(listener, Tracker::new(), access, std::future::pending());
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        Self { directory, authority, address, serving }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("authority")
    }

    fn tracker(&self) -> String {
        self.address.to_string()
    }

    fn token(&self, group: &str, roles: &[Role]) -> String {
        let token = Token { group: group.to_owned(), roles: Roles::of(roles.iter().copied()) };
        let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(600);
        tokens::create(&self.path(), self.authority.issuer(), &token, expires).unwrap()
    }

    async fn member(&self, group: &str, roles: &[Role]) -> (Arc<Identity>, Arc<Credentials>) {
        let identity = identity();
        let membership = join(&self.tracker(), &identity, &self.token(group, roles)).await.unwrap();
        let credentials = credentials(membership, &identity);
        (identity, credentials)
    }

    fn client(&self, identity: &Arc<Identity>, tls: Option<Tls>, group: &str) -> Arc<TrackerClient> {
        let config = ClientConfig {
            tls,
            group: group.into(),
            piece_port: 7081,
            ..ClientConfig::new(vec![self.tracker()], identity.id())
        };
        TrackerClient::new(config).unwrap()
    }
}

fn calls(identity: &Arc<Identity>, credentials: &Arc<Credentials>) -> Option<Tls> {
    Some(Tls::new(Protocol::Calls, identity, Some(credentials)).unwrap())
}

async fn finds(client: &TrackerClient, digest: Digest) -> Result<Vec<lapwing_p2p::identity::PeerId>, String> {
    let found = client.find(digest).await.map_err(|error| error.to_string())?;
    Ok(found.holders.iter().map(|holder| holder.peer).collect())
}

fn refused(error: &AskError) -> bool {
    matches!(error, AskError::Refused { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn members_find_each_other_and_strangers_nothing() {
    let cluster = Cluster::start(Duration::from_secs(3600)).await;
    let (one, of_one) = cluster.member("team", &[Role::Node]).await;
    let (two, of_two) = cluster.member("team", &[Role::Node]).await;
    let digest = Digest::of(b"layer");
    let first = cluster.client(&one, calls(&one, &of_one), "team");
    first.announce(digest, Some(Holding::Complete)).await.unwrap();
    let second = cluster.client(&two, calls(&two, &of_two), "team");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while finds(&second, digest).await != Ok(vec![one.id()]) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", finds(&second, digest).await);
        tokio::task::yield_now().await;
    }
    let stranger = identity();
    let by_key = Tls::new(Protocol::Calls, &stranger, None).unwrap();
    let other_group = cluster.client(&two, calls(&two, &of_two), "other");
    let somebody_else = cluster.client(&stranger, calls(&two, &of_two), "team");
    let cases = [
        ("in plain text", cluster.client(&stranger, None, "team")),
        ("with a key alone", cluster.client(&stranger, Some(by_key), "team")),
        ("in a group that is not its own", other_group),
        ("in the name of another", somebody_else),
    ];
    for (what, client) in cases {
        assert!(finds(&client, digest).await.is_err(), "{what}");
    }
    let (seed, of_seed) = cluster.member("team", &[Role::Seed]).await;
    let as_node = cluster.client(&seed, calls(&seed, &of_seed), "team");
    assert!(finds(&as_node, digest).await.is_err(), "a seed that says that it is a node");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_token_stays_outside_and_who_joined_stays_inside_until_it_is_revoked() {
    let cluster = Cluster::start(Duration::from_secs(3)).await;
    let tracker = cluster.tracker();
    let (node, token) = (identity(), cluster.token("team", &[Role::Node]));
    let last = token.chars().nth(30).unwrap();
    let forged = token.replacen(last, if last == '0' { "1" } else { "0" }, 99);
    assert!(join(&tracker, &node, &forged).await.is_err());
    let other = Cluster::start(Duration::from_secs(1)).await;
    let foreign = join(&tracker, &node, &other.token("team", &[Role::Node])).await.unwrap_err();
    assert!(!refused(&foreign), "the token is not shown to a tracker of another authority: {foreign}");

    let of_node = credentials(join(&tracker, &node, &token).await.unwrap(), &node);
    assert_eq!((&*of_node.own().group, of_node.own().peer), ("team", Some(node.id())));
    // With a certificate that has run out, by its key.
    while of_node.good_until().is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let renewed = credentials(renew(&tracker, &node, &of_node).await.unwrap(), &node);
    assert_eq!(renewed.own(), of_node.own());
    // And with one that is good.
    let fresh = credentials(renew(&tracker, &node, &renewed).await.unwrap(), &node);
    assert!(
        renew(&tracker, &identity(), &of_node).await.is_err_and(|error| refused(&error)),
        "a key that never joined"
    );

    let elsewhere = Authority::open(&cluster.path(), Duration::from_secs(1)).unwrap();
    assert!(elsewhere.revoke(node.id()).unwrap());
    assert!(renew(&tracker, &node, &fresh).await.is_err_and(|error| refused(&error)), "revoked");
    let again = cluster.token("team", &[Role::Node]);
    assert!(join(&tracker, &node, &again).await.is_err_and(|error| refused(&error)), "also with a token");
    assert_eq!(cluster.authority.members().len(), 1);
    assert!(Path::new(&cluster.path().join("members")).exists());
}

/// It connected while its certificate was not good, and must not stay a stranger on that connection for good.
#[tokio::test(flavor = "multi_thread")]
async fn who_renews_a_certificate_that_ran_out_is_taken_for_a_member_again() {
    let cluster = Cluster::start(Duration::from_secs(3600)).await;
    let node = identity();
    let brief = Authority::open(&cluster.path(), Duration::from_secs(1)).unwrap();
    let roles = Roles::of([Role::Node]);
    let member = Member { cluster: String::new(), group: "team".into(), roles, peer: None };
    let of_node = credentials(brief.certify(&member, node.id()).unwrap(), &node);
    while of_node.good_until().is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let client = cluster.client(&node, calls(&node, &of_node), "team");
    assert!(finds(&client, Digest::of(b"layer")).await.is_err());
    let given = cluster.authority.certify(&member, node.id()).unwrap();
    let authorities = Authorities::new(given.authorities, Rules::default()).unwrap();
    of_node.replace(Shown::with_identity(given.certificates, &node).unwrap(), authorities).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while finds(&client, Digest::of(b"layer")).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", finds(&client, Digest::of(b"layer")).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An authority with a new key takes the place of the old one; nobody needs a token again.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_goes_from_one_authority_to_another() {
    let [old, new] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [of_old, of_new] = [&old, &new].map(|directory| {
        Issuer::create(&directory.path().join("authority"), "prod.example").unwrap().certificate().clone()
    });
    for (directory, both) in [(&old, [&of_old, &of_new]), (&new, [&of_new, &of_old])] {
        write_certificates(&directory.path().join("authority/authority.pem"), &both.map(Clone::clone)).unwrap();
    }
    let hour = Duration::from_secs(3600);
    let before = Cluster::start_in(old, hour).await;
    let (node, of_node) = before.member("team", &[Role::Node]).await;
    assert_eq!(of_node.authorities().certificates(), [of_old, of_new.clone()]);
    drop(before);
    let after = Cluster::start_in(new, hour).await;
    let tls = calls(&node, &of_node);
    assert_eq!(
        finds(&after.client(&node, tls, "team"), Digest::of(b"layer")).await,
        Ok(vec![]),
        "it is still a member"
    );
    let renewed = renew(&after.tracker(), &node, &of_node).await.unwrap();
    assert_eq!(renewed.certificates[1], of_new);
}

/// A federated cluster's members are believed, and get no certificates here.
#[tokio::test(flavor = "multi_thread")]
async fn another_clusters_members_are_not_made_members_of_this_one() {
    let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let of_ours = Issuer::create(&ours.path().join("authority"), "prod.example").unwrap().certificate().clone();
    let other = Issuer::create(&theirs.path().join("authority"), "other.example").unwrap();
    let believed = [of_ours, other.certificate().clone()];
    write_certificates(&ours.path().join("authority/authority.pem"), &believed).unwrap();
    let cluster = Cluster::start_in(ours, Duration::from_secs(3600)).await;
    let stranger = identity();
    let member = Member { cluster: String::new(), group: "team".into(), roles: Roles::of([Role::Node]), peer: None };
    let certificates = other.issue(&member, stranger.id(), Duration::from_secs(3600)).unwrap();
    let of_stranger = credentials(Membership { certificates, authorities: believed.to_vec() }, &stranger);
    let client = cluster.client(&stranger, calls(&stranger, &of_stranger), "team");
    assert_eq!(finds(&client, Digest::of(b"layer")).await, Ok(vec![]), "it is believed");
    let refused = renew(&cluster.tracker(), &stranger, &of_stranger).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("never joined here")));
}

/// Members of another group, by certificates that are good, forged, or over, in each name that they can call themselves.
#[tokio::test(flavor = "multi_thread")]
async fn members_of_another_group_and_forgers_learn_nothing() {
    let mut evidence = Evidence::new(20, "members of another group, forged and expired certificates at a tracker");
    let cluster = Cluster::start(Duration::from_secs(3600)).await;
    let (one, of_one) = cluster.member("team", &[Role::Node]).await;
    let (there, gone) = (Digest::of(b"layer"), Digest::of(b"nobody has it"));
    let holder = cluster.client(&one, calls(&one, &of_one), "team");
    holder.announce(there, Some(Holding::Complete)).await.unwrap();
    let (two, of_two) = cluster.member("team", &[Role::Node]).await;
    let finder = cluster.client(&two, calls(&two, &of_two), "team");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while finds(&finder, there).await != Ok(vec![one.id()]) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", finds(&finder, there).await);
        tokio::task::yield_now().await;
    }

    // An authority of the same name that somebody else made, and one whose certificates end at once.
    let forger = Cluster::start(Duration::from_secs(3600)).await;
    let brief = Authority::open(&cluster.path(), Duration::from_secs(1)).unwrap();
    let kinds = ["another group", "a forged certificate", "an expired certificate"];
    let mut strangers = Vec::new();
    for number in 0..count(6, 1000) as usize {
        let (identity, of_it) = match number % 3 {
            0 => cluster.member("other", &[Role::Node]).await,
            1 => forger.member("team", &[Role::Node]).await,
            _ => {
                let identity = identity();
                let roles = Roles::of([Role::Node]);
                let member = Member { cluster: String::new(), group: "team".into(), roles, peer: None };
                let of_it = credentials(brief.certify(&member, identity.id()).unwrap(), &identity);
                (identity, of_it)
            }
        };
        strangers.push((kinds[number % 3], identity, of_it));
    }
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (_, _, brief) in strangers.iter().filter(|(kind, ..)| *kind == kinds[2]) {
        while brief.good_until().is_some_and(|end| end.as_secs() >= now()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let (mut told, mut refusals) = (0, 0);
    for (kind, identity, of_it) in &strangers {
        for group in ["team", "other"] {
            let client = cluster.client(identity, calls(identity, of_it), group);
            let begun = std::time::Instant::now();
            let answers = [finds(&client, there).await, finds(&client, gone).await];
            evidence.ended(begun.elapsed(), answers[0].is_ok());
            evidence.fault(kind);
            assert_eq!(answers[0], answers[1], "{kind}, as {group}: what exists is told from what does not");
            match &answers[0] {
                Ok(found) => {
                    assert!(found.is_empty(), "{kind}, as {group}: {found:?}");
                    assert_eq!((*kind, group), (kinds[0], "other"), "{kind} was let in");
                    told += 1;
                }
                Err(_) => refusals += 1,
            }
        }
    }
    assert!(told > 0 && refusals > told, "{told} told, {refusals} refused");
    assert_eq!(finds(&finder, there).await, Ok(vec![one.id()]), "the members go on");
}
