//! The tracker that lies.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use lapwing_discovery::proto::lease_reply::{Exhausted, Grant, Outcome};
use lapwing_discovery::proto::tracker_service_server::{TrackerService, TrackerServiceServer};
use lapwing_discovery::proto::{self, HoldingState, StatementKind};
use lapwing_p2p::identity::PeerId;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lie {
    /// The truth.
    Nothing,
    /// Peers where nobody listens.
    Dead,
    /// As many dead peers as an answer may have bytes for, before the honest one.
    DeadFirst,
    /// A million peers in one answer.
    Million,
    /// Loopback, link-local, metadata, multicast and impossible addresses.
    Astray,
    /// The asker itself: its id elsewhere, and others' ids at its address.
    Oneself,
    /// The honest peer under another's name.
    AnotherName,
    /// Objects that nobody has, stated by many.
    WrongDigests,
    /// Bytes that are no digests, ids or addresses.
    Garbage,
    /// Leases of what was not asked for.
    WrongLeases,
    /// All was fetched by others.
    Exhausted,
}

impl Lie {
    /// About leases: the origin is asked without one in the end, after most of a minute.
    pub(crate) const LEASES: [Self; 2] = [Self::WrongLeases, Self::Exhausted];
    pub(crate) const PEERS: [Self; 8] = [
        Self::Dead,
        Self::DeadFirst,
        Self::Million,
        Self::Astray,
        Self::Oneself,
        Self::AnotherName,
        Self::WrongDigests,
        Self::Garbage,
    ];

    /// Whether the truth is told beside it, and there is no origin then.
    pub(crate) const fn names_the_honest(self) -> bool {
        matches!(self, Self::DeadFirst | Self::Astray | Self::Oneself | Self::WrongDigests | Self::Garbage)
    }
}

struct Script {
    lie: Lie,
    honest: Vec<(PeerId, u16)>,
    told: BTreeMap<Lie, u64>,
}

#[derive(Clone)]
pub(crate) struct Liar {
    pub(crate) address: String,
    here: IpAddr,
    script: Arc<Mutex<Script>>,
}

impl Liar {
    pub(crate) async fn start(here: &str) -> Self {
        let listener = TcpListener::bind((here, 7070)).await.unwrap();
        let script = Arc::new(Mutex::new(Script { lie: Lie::Nothing, honest: Vec::new(), told: BTreeMap::new() }));
        let liar = Self { address: listener.local_addr().unwrap().to_string(), here: here.parse().unwrap(), script };
        let service = TrackerServiceServer::new(liar.clone());
        let serving = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        liar
    }

    /// Says this from now on, and of the peers at these ports that they have everything.
    pub(crate) fn tell(&self, lie: Lie, honest: &[(PeerId, u16)]) {
        let mut script = self.script.lock().unwrap();
        script.lie = lie;
        script.honest = honest.to_vec();
    }

    /// How many answers were lies, by kind.
    pub(crate) fn told(&self) -> BTreeMap<Lie, u64> {
        self.script.lock().unwrap().told.clone()
    }

    fn lie(&self, in_leases: bool) -> Lie {
        let mut script = self.script.lock().unwrap();
        let lie = script.lie;
        let is_of_leases = matches!(lie, Lie::WrongLeases | Lie::Exhausted);
        if lie != Lie::Nothing && is_of_leases == in_leases {
            *script.told.entry(lie).or_default() += 1;
        }
        lie
    }

    fn holder(&self, node: u32, address: &[u8], port: u16) -> proto::Holder {
        let mut id = vec![0xaa; 32];
        id[..4].copy_from_slice(&node.to_be_bytes());
        proto::Holder {
            node: id,
            address: address.to_vec(),
            port: port.into(),
            state: HoldingState::Complete.into(),
            ..proto::Holder::default()
        }
    }

    fn here(&self) -> Vec<u8> {
        match self.here {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        }
    }

    fn holders(&self, lie: Lie, asker: &proto::Caller) -> Vec<proto::Holder> {
        let here = self.here();
        let asker_port = asker.piece_port as u16;
        match lie {
            Lie::Dead => (1..64).map(|node| self.holder(node, &here, 9000 + node as u16)).collect(),
            // With the honest one among the first that are believed.
            Lie::DeadFirst => (1..60).map(|node| self.holder(node, &here, 9000 + node as u16)).collect(),
            Lie::Million => (0..1_000_000).map(|node| self.holder(node, &here, 9000)).collect(),
            Lie::Astray => {
                let v4: [([u8; 4], u16); 9] = [
                    ([127, 0, 0, 1], 7081),
                    ([127, 8, 8, 8], 7081),
                    ([169, 254, 169, 254], 80),
                    ([169, 254, 7, 7], 7081),
                    ([0, 0, 0, 0], 7081),
                    ([224, 0, 0, 1], 7081),
                    ([239, 255, 255, 250], 1900),
                    ([255, 255, 255, 255], 7081),
                    ([10, 9, 8, 7], 0),
                ];
                let v6 = ["::1", "fe80::1", "ff02::1", "fd00:ec2::254", "::ffff:127.0.0.1", "::ffff:169.254.169.254"];
                let v6 = v6.map(|text| text.parse::<std::net::Ipv6Addr>().unwrap().octets());
                let numbered = (1..).zip(v4.iter().map(|(address, port)| (&address[..], *port)));
                let more = (100..).zip(v6.iter().map(|address| (&address[..], 7081)));
                numbered.chain(more).map(|(node, (address, port))| self.holder(node, address, port)).collect()
            }
            Lie::Oneself => {
                let own = proto::Holder { node: asker.node.clone(), ..self.holder(0, &here, 9000) };
                let at_itself = (1..8).map(|node| self.holder(node, &here, asker_port));
                [own.clone(), proto::Holder { port: asker.piece_port, ..own }].into_iter().chain(at_itself).collect()
            }
            Lie::AnotherName => vec![self.holder(1, &here, 7101)],
            Lie::Garbage => vec![
                proto::Holder { node: vec![1; 31], ..self.holder(1, &here, 7081) },
                proto::Holder { node: vec![1; 90_000], ..self.holder(1, &here, 7081) },
                proto::Holder { state: 99, ..self.holder(2, &here, 9001) },
                proto::Holder { port: 70_000, ..self.holder(3, &here, 1) },
                self.holder(4, b"", 7081),
                self.holder(5, &[1; 17], 7081),
            ],
            _ => Vec::new(),
        }
    }

    fn votes(&self, lie: Lie, subject: &[u8]) -> Vec<proto::Vote> {
        let vote = |subject: Vec<u8>, object: u8, kind: i32, length| proto::Vote {
            statement: Some(proto::Statement { subject, kind, object: vec![object; 32], length }),
            nodes: 1000,
        };
        let (metainfo, index) = (StatementKind::Metainfo.into(), StatementKind::LayerIndex.into());
        match lie {
            Lie::WrongDigests => vec![
                vote(subject.to_vec(), 1, metainfo, 2000),
                vote(subject.to_vec(), 2, metainfo, u64::MAX),
                vote(subject.to_vec(), 3, index, 1 << 20),
                vote(vec![9; 32], 4, metainfo, 2000),
            ],
            Lie::Garbage => vec![vote(vec![7; 3], 1, 99, 0), proto::Vote::default()],
            _ => Vec::new(),
        }
    }

    fn find(&self, request: proto::FindRequest) -> proto::FindReply {
        let lie = self.lie(false);
        let asker = request.caller.unwrap_or_default();
        let mut holders = self.holders(lie, &asker);
        let honest = self.script.lock().unwrap().honest.clone();
        for (peer, port) in &honest {
            let peer = proto::Holder { node: peer.as_bytes().to_vec(), ..self.holder(0, &self.here(), *port) };
            holders.push(peer);
        }
        let lessees = honest.iter().map(|(peer, _)| peer.as_bytes().to_vec()).collect();
        proto::FindReply { holders, votes: self.votes(lie, &request.digest), lessees, ..proto::FindReply::default() }
    }

    fn lease(&self, request: &proto::LeaseRequest) -> proto::LeaseReply {
        let run = request.urgent.first().or(request.missing.first()).copied().unwrap_or_default();
        let grant = |first, count| Outcome::Grant(Grant { lease: 1, first, count, term_ms: 30_000, kind: 0 });
        let outcome = match self.lie(true) {
            Lie::WrongLeases if fastrand::bool() => grant(u32::MAX, 2),
            Lie::WrongLeases => grant(run.end, 0),
            Lie::Exhausted => Outcome::Exhausted(Exhausted {}),
            _ => grant(run.first, (run.end - run.first).min(8)),
        };
        proto::LeaseReply { outcome: Some(outcome), ..proto::LeaseReply::default() }
    }
}

/// A tracker that knows nothing, but for what a [`Liar`] says.
macro_rules! answers {
    ($($method:ident: $request:ident -> $reply:ident,)*) => {
        #[tonic::async_trait]
        impl TrackerService for Liar {
            async fn find(&self, request: Request<proto::FindRequest>) -> Result<Response<proto::FindReply>, Status> {
                Ok(Response::new(Liar::find(self, request.into_inner())))
            }

            async fn lease(
                &self,
                request: Request<proto::LeaseRequest>,
            ) -> Result<Response<proto::LeaseReply>, Status> {
                Ok(Response::new(Liar::lease(self, request.get_ref())))
            }

            async fn sync(
                &self,
                request: Request<Streaming<proto::SyncRequest>>,
            ) -> Result<Response<proto::SyncReply>, Status> {
                let mut listing = request.into_inner();
                while listing.message().await?.is_some() {}
                Ok(Response::new(proto::SyncReply::default()))
            }

            $(
                async fn $method(
                    &self,
                    _: Request<proto::$request>,
                ) -> Result<Response<proto::$reply>, Status> {
                    Ok(Response::new(proto::$reply::default()))
                }
            )*
        }
    };
}

answers! {
    announce: AnnounceRequest -> AnnounceReply,
    replicas: ReplicasRequest -> ReplicasReply,
    seeds: SeedsRequest -> SeedsReply,
    settle: SettleRequest -> SettleReply,
    state: StateRequest -> StateReply,
    heartbeat: HeartbeatRequest -> HeartbeatReply,
    order: OrderRequest -> OrderReply,
    orders: OrdersRequest -> OrdersReply,
    fail_order: FailOrderRequest -> FailOrderReply,
    tell_trial: TellTrialRequest -> TellTrialReply,
    trial_reports: TrialReportsRequest -> TrialReportsReply,
    report: ReportRequest -> ReportReply,
    leave: LeaveRequest -> LeaveReply,
}
