//! Clients that connect and say nothing, say it slowly, or take slowly what they asked for.

use lapwing_evidence::count;
use lapwing_lab::require;
use lapwing_lab::wait::{self, Poll};

use super::*;

/// Who is slow, of each kind.
const SLOW: usize = 20;

#[test]
fn idle_and_slow_clients_are_bounded_and_others_are_served_beside_them() {
    const NAME: &str = "idle_and_slow_clients_are_bounded_and_others_are_served_beside_them";
    if !require(NAME, &NEEDS) {
        return;
    }
    let mut evidence = Evidence::new(6, "idle and slow clients of mirror, proxy, admin listener and piece wire");
    let mut rig = Rig::new("idle", 61);
    rig.begin(&mut evidence);
    let second = rig.site.network.host("second", None).unwrap();
    let second = Lapwing::start(&second, rig.site.whole_settings().registry(&rig.site.registry.name())).unwrap();
    let before = held(rig.pid());
    let wire = format!("{}:7081", rig.host.address());
    let listeners = [MIRROR, ADMIN, PROXY, wire.as_str()];
    let many = count(800, 10_000) as usize;
    let connect = |address: &str| {
        let stream = TcpStream::connect_timeout(&address.parse::<SocketAddr>()?, PATIENCE)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let mut idle = rig
        .host
        .within(|| (0..many).map(|number| connect(listeners[number % 4])).collect::<anyhow::Result<Vec<_>>>())
        .unwrap();
    evidence.faults("an idle connection", many as u64);
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", rig.path());
    let mut slow =
        rig.host.within(|| (0..2 * SLOW).map(|_| connect(MIRROR)).collect::<anyhow::Result<Vec<_>>>()).unwrap();
    // Those at the front have asked, and take a byte now and then; the others ask so slowly that they never have.
    for stream in &mut slow[..SLOW] {
        let _ = stream.write_all(request.as_bytes());
    }
    let mut most = before;
    for round in 0..count(3, 20) as usize {
        for stream in &mut slow[..SLOW] {
            let _ = stream.read(&mut [0]);
        }
        for stream in &mut slow[SLOW..] {
            let _ = stream.write_all(&request.as_bytes()[round..=round]);
        }
        evidence.faults("a slow client's byte", 2 * SLOW as u64);
        rig.goes_on(&mut evidence);
        let now = held(rig.pid());
        most = (most.0.max(now.0), most.1.max(now.1));
        std::thread::sleep(Duration::from_secs(1));
    }
    // Another node, whose only peer is pestered.
    let begun = Instant::now();
    let answer = second.mirror_blob(&rig.site.registry.name(), REPOSITORY, &rig.layer.digest).unwrap();
    evidence.ended(begun.elapsed(), answer.status == 200);
    assert!(answer.status == 200 && evidence.compare(&rig.bytes, &answer.body), "{}", answer.head);

    eprintln!("memory and descriptors: {before:?}, at most {most:?}, with {many} idle clients");
    evidence.figure("memory more with idle clients, MiB", (most.0.saturating_sub(before.0) >> 20) as f64);
    evidence.figure("descriptors more with idle clients", (most.1.saturating_sub(before.1)) as f64);
    assert!(most.0 < before.0 + (256 << 20), "{} MiB more", (most.0 - before.0) >> 20);
    if many >= 10_000 {
        // A listener at a time: whom each of them has let go.
        let waits = |error: &std::io::Error| error.kind() == ErrorKind::WouldBlock;
        let is_there = |stream: &mut TcpStream| stream.read(&mut [0; 512]).is_err_and(|error| waits(&error));
        wait::until("the idle ones to be let go", Duration::from_secs(180), || {
            let left = idle.iter_mut().filter_map(|stream| is_there(stream).then_some(())).count();
            Ok(if left == 0 { Poll::Ready(()) } else { Poll::NotYet(format!("{left} idle clients are connected")) })
        })
        .unwrap();
    }
    drop((idle, slow));
    let pid = rig.pid();
    wait::until_true("the descriptors to be given back", PATIENCE, || held(pid).1 < before.1 + 50).unwrap();
    rig.goes_on(&mut evidence);
}
