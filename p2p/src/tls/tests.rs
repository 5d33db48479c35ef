use rustls::{CertificateError, ClientConnection, ServerConnection};

use super::*;
use crate::membership::{Authorities, Issuer, Roles, Rules, Shown};

fn identity() -> Arc<Identity> {
    Arc::new(Identity::generate().unwrap())
}

fn tls(identity: &Arc<Identity>) -> Tls {
    Tls::new(Protocol::Wire, identity, None).unwrap()
}

/// Carries bytes to and fro until both are done or one refuses.
fn shake_hands(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), Error> {
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok(())
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let (dialer, listener) = (identity(), identity());
    let dialing = tls(&dialer).client(Expected::Peer(listener.id()));
    let mut client = ClientConnection::new(dialing, Tls::name()).unwrap();
    let mut server = ServerConnection::new(tls(&listener).server()).unwrap();
    shake_hands(&mut client, &mut server).unwrap();
    let seen_by_client = tls(&dialer).proven(&client, Side::Listener).unwrap();
    let seen_by_server = tls(&listener).proven(&server, Side::Dialer).unwrap();
    assert_eq!((seen_by_client.peer, seen_by_server.peer), (Some(listener.id()), Some(dialer.id())));
    assert_eq!(seen_by_client.binding, seen_by_server.binding, "the binding is one of the connection");
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[test]
fn a_dialer_accepts_only_the_peer_it_dialled() {
    let (dialer, listener, other) = (identity(), identity(), identity());
    let dialing = tls(&dialer).client(Expected::Peer(other.id()));
    let mut client = ClientConnection::new(dialing, Tls::name()).unwrap();
    let mut server = ServerConnection::new(tls(&listener).server()).unwrap();
    let refused = shake_hands(&mut client, &mut server).unwrap_err();
    assert_eq!(refused, Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
}

/// Shows another's certificate, for which it has no key.
#[test]
fn a_certificate_without_its_key_is_worth_nothing() {
    let (dialer, listener, victim) = (identity(), identity(), identity());
    let of_victim = {
        let mut parameters = CertificateParams::default();
        parameters.serial_number = Some(1_u64.into());
        parameters.self_signed(&Key::new(&victim)).unwrap().der().clone()
    };
    assert_eq!(key_of(&of_victim), Some(victim.id()));
    let stolen = |thief: &Arc<Identity>| {
        let key = Key::new(thief);
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![of_victim.clone()], Arc::new(key))))
    };
    let bad_signature = Error::InvalidCertificate(CertificateError::BadSignature);

    let mut impostor = tls(&listener);
    Arc::make_mut(&mut impostor.server).cert_resolver = stolen(&listener);
    let dialing = tls(&dialer).client(Expected::Peer(victim.id()));
    let mut client = ClientConnection::new(dialing, Tls::name()).unwrap();
    let mut server = ServerConnection::new(impostor.server()).unwrap();
    assert_eq!(shake_hands(&mut client, &mut server).unwrap_err(), bad_signature);

    let mut impostor = tls(&dialer);
    impostor.client.client_auth_cert_resolver = stolen(&dialer);
    let mut client = ClientConnection::new(impostor.client(Expected::Peer(listener.id())), Tls::name()).unwrap();
    let mut server = ServerConnection::new(tls(&listener).server()).unwrap();
    assert_eq!(shake_hands(&mut client, &mut server).unwrap_err(), bad_signature);
}

#[derive(Debug)]
struct Nothing;

impl ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn who_shows_no_certificate_is_refused() {
    let listener = identity();
    let mut nameless = tls(&identity());
    nameless.client.client_auth_cert_resolver = Arc::new(Nothing);
    let mut client = ClientConnection::new(nameless.client(Expected::Peer(listener.id())), Tls::name()).unwrap();
    let mut server = ServerConnection::new(tls(&listener).server()).unwrap();
    assert_eq!(shake_hands(&mut client, &mut server).unwrap_err(), Error::NoCertificatesPresented);
}

/// A member of the cluster of `issuer`, in a group and some roles.
struct Someone {
    identity: Arc<Identity>,
    credentials: Arc<Credentials>,
}

fn shown(issuer: &Issuer, identity: &Arc<Identity>, group: &str, roles: &[Role]) -> Shown {
    let roles = Roles::of(roles.iter().copied());
    let member = Member { cluster: String::new(), group: group.to_owned(), roles, peer: None };
    let chain = issuer.issue(&member, identity.id(), Duration::from_secs(3600)).unwrap();
    Shown::with_identity(chain, identity).unwrap()
}

fn believing(issuer: &Issuer) -> Authorities {
    Authorities::new(vec![issuer.certificate().clone()], Rules::default()).unwrap()
}

impl Someone {
    fn new(issuer: &Issuer, group: &str, roles: &[Role]) -> Self {
        let identity = identity();
        let credentials = Credentials::new(shown(issuer, &identity, group, roles), believing(issuer)).unwrap();
        Self { identity, credentials: Arc::new(credentials) }
    }

    fn tls(&self, protocol: Protocol) -> Tls {
        Tls::new(protocol, &self.identity, Some(&self.credentials)).unwrap()
    }
}

/// Gives what each side has proven to the other: the listener to the dialer first.
fn meet(dialer: &Tls, expected: Expected, listener: &Tls) -> Result<(Proven, Proven), Error> {
    let mut client = ClientConnection::new(dialer.client(expected), Tls::name()).unwrap();
    let mut server = ServerConnection::new(listener.server()).unwrap();
    shake_hands(&mut client, &mut server)?;
    Ok((dialer.proven(&client, Side::Listener)?, listener.proven(&server, Side::Dialer)?))
}

fn cluster(name: &str) -> (tempfile::TempDir, Issuer) {
    let directory = tempfile::tempdir().unwrap();
    let issuer = Issuer::create(&directory.path().join("authority"), name).unwrap();
    (directory, issuer)
}

#[test]
fn members_of_one_group_trade_and_nobody_else_does() {
    let ((_kept, ours), (_kept_too, theirs)) = (cluster("ours"), cluster("theirs"));
    let (one, two) = (Someone::new(&ours, "a", &[Role::Node]), Someone::new(&ours, "a", &[Role::Seed]));
    let peer = |someone: &Someone| Expected::Peer(someone.identity.id());
    let wire = |someone: &Someone| someone.tls(Protocol::Wire);
    let (listener, dialer) = meet(&wire(&one), peer(&two), &wire(&two)).unwrap();
    assert_eq!((listener.peer, dialer.peer), (Some(two.identity.id()), Some(one.identity.id())));
    assert_eq!(dialer.member, Some(one.credentials.own()));
    let others = [
        ("of another group", Someone::new(&ours, "b", &[Role::Node])),
        ("of another cluster", Someone::new(&theirs, "a", &[Role::Node])),
        ("a mere tracker", Someone::new(&ours, "a", &[Role::Tracker])),
    ];
    for (what, other) in &others {
        assert!(meet(&wire(other), peer(&one), &wire(&one)).is_err(), "{what} dials");
        assert!(meet(&wire(&one), peer(other), &wire(other)).is_err(), "{what} listens");
    }
    assert!(meet(&wire(&one), peer(&one), &wire(&two)).is_err(), "a member that is another node");
    let stranger = identity();
    assert!(meet(&tls(&stranger), peer(&one), &wire(&one)).is_err(), "a stranger dials");
    assert!(meet(&wire(&one), Expected::Peer(stranger.id()), &tls(&stranger)).is_err(), "a stranger listens");
}

#[test]
fn a_tracker_hears_strangers_as_strangers_and_callers_want_a_tracker() {
    let (_kept, ours) = cluster("ours");
    let tracker = Someone::new(&ours, "any", &[Role::Tracker]);
    let (node, seed) = (Someone::new(&ours, "a", &[Role::Node]), Someone::new(&ours, "a", &[Role::Seed]));
    let calls = |someone: &Someone| someone.tls(Protocol::Calls);
    let (_, caller) = meet(&calls(&node), Expected::Role(Role::Tracker), &calls(&tracker)).unwrap();
    assert_eq!(caller.member, Some(node.credentials.own()));
    assert!(meet(&calls(&node), Expected::Role(Role::Tracker), &calls(&seed)).is_err());
    meet(&calls(&node), Expected::Role(Role::Seed), &calls(&seed)).unwrap();
    let far = Someone::new(&ours, "b", &[Role::Seed]);
    assert!(meet(&calls(&node), Expected::Role(Role::Seed), &calls(&far)).is_err(), "a seed of another group");

    let stranger = identity();
    let joining = Tls::new(Protocol::Calls, &stranger, None).unwrap();
    let pinned = Expected::Authority(crate::membership::fingerprint(ours.certificate()).unwrap());
    let (_, caller) = meet(&joining, pinned, &calls(&tracker)).unwrap();
    assert_eq!((caller.peer, caller.member), (Some(stranger.id()), None));
    assert!(meet(&joining, Expected::Authority([7; 32]), &calls(&tracker)).is_err());
    assert!(meet(&joining, pinned, &calls(&seed)).is_err(), "no tracker");
    assert!(meet(&joining, pinned, &Tls::new(Protocol::Calls, &identity(), None).unwrap()).is_err());
    assert!(
        meet(&node.tls(Protocol::Wire), Expected::Role(Role::Tracker), &calls(&tracker)).is_err(),
        "another protocol"
    );
}

/// A certificate that says the right words over a signature of its own.
#[test]
fn who_writes_a_membership_into_his_own_certificate_stays_a_stranger() {
    let (_kept, ours) = cluster("ours");
    let tracker = Someone::new(&ours, "any", &[Role::Tracker]).tls(Protocol::Calls);
    let (_kept_too, own) = cluster("ours");
    let forger = Someone::new(&own, "a", &[Role::Node]);
    let (_, caller) = meet_regardless(&forger, &tracker);
    assert_eq!((caller.peer, caller.member), (Some(forger.identity.id()), None));
}

/// The forger does not care whom it speaks to.
fn meet_regardless(forger: &Someone, tracker: &Tls) -> (Proven, Proven) {
    let mut dialer = Tls::new(Protocol::Calls, &forger.identity, None).unwrap();
    dialer.client.client_auth_cert_resolver = Arc::new(OfMember(Arc::clone(&forger.credentials)));
    let mut client = dialer.client.clone();
    client.dangerous().set_certificate_verifier(Arc::new(Believer));
    let mut client = ClientConnection::new(Arc::new(client), Tls::name()).unwrap();
    let mut server = ServerConnection::new(tracker.server()).unwrap();
    shake_hands(&mut client, &mut server).unwrap();
    (dialer.proven(&client, Side::Listener).unwrap(), tracker.proven(&server, Side::Dialer).unwrap())
}

#[derive(Debug)]
struct Believer;

impl rustls::client::danger::ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        unreachable!("TLS 1.3 alone is offered")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[test]
fn new_credentials_count_from_the_next_connection_on() {
    let ((_kept, old), (_kept_too, new)) = (cluster("old"), cluster("new"));
    let (one, two) = (Someone::new(&old, "a", &[Role::Node]), Someone::new(&new, "a", &[Role::Node]));
    let (dialer, listener) = (one.tls(Protocol::Wire), two.tls(Protocol::Wire));
    let two_is = Expected::Peer(two.identity.id());
    assert!(meet(&dialer, two_is, &listener).is_err());
    one.credentials.replace(shown(&new, &one.identity, "a", &[Role::Node]), believing(&new)).unwrap();
    meet(&dialer, two_is, &listener).unwrap();
    let refused = one.credentials.replace(shown(&old, &one.identity, "a", &[Role::Node]), believing(&new));
    assert!(refused.is_err(), "what the own authorities do not believe");
    meet(&dialer, two_is, &listener).unwrap();
}

#[test]
fn a_certificate_for_another_key_is_not_taken() {
    let (_kept, ours) = cluster("ours");
    let (one, two) = (identity(), identity());
    let of_one = shown(&ours, &one, "a", &[Role::Node]);
    let refused = Shown::with_identity(of_one.chain().to_vec(), &two).unwrap_err().to_string();
    assert!(refused.contains(&two.id().to_string()) && refused.contains("lapwing ca join"), "{refused}");
}
