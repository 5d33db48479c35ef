//! A private blob goes only to those whom its registry lets have it, whatever is here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::Method;
use lapwing_p2p::digest::Digest;

use super::fake::{Fake, challenge, status};
use super::rig::{Rig, Sample, header};

#[tokio::test]
async fn every_byte_is_here_and_strangers_get_none() {
    let sample = Sample::new(300_000);
    let revoked = Arc::new(AtomicBool::new(false));
    let fake = Fake::start({
        let (sample, revoked) = (sample.clone(), revoked.clone());
        move |seen| match (seen.path(), seen.header("authorization")) {
            ("/token", _) => status(401, &[]),
            (_, Some("Bearer good")) if !revoked.load(Ordering::SeqCst) => sample.answer(seen),
            (_, Some("Bearer weak")) => status(403, &[]),
            _ => challenge(seen),
        }
    })
    .await;
    let rig = Rig::start(&fake).await;
    let ask = |method: Method, token: Option<&'static str>| {
        let request = rig.ask(method, &sample.layer_path());
        async move {
            match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            }
            .send()
            .await
            .unwrap()
        }
    };
    assert!(ask(Method::GET, Some("good")).await.bytes().await.unwrap() == sample.layer);
    let blob = rig.node.open(Digest::of(&sample.layer), 300_000, None).unwrap();
    blob.verified().await.unwrap();

    for method in [Method::GET, Method::HEAD] {
        let anonymous = ask(method.clone(), None).await;
        assert_eq!(anonymous.status(), 401);
        let relayed = header(&anonymous, "www-authenticate").unwrap();
        assert!(relayed.starts_with(&format!("Bearer realm=\"http://{}/token\"", fake.address)), "{relayed}");
        assert!(anonymous.bytes().await.unwrap().len() < 1000);
        assert_eq!(ask(method.clone(), Some("weak")).await.status(), 403);
        assert_eq!(ask(method.clone(), Some("wrong")).await.status(), 401);
        assert_eq!(ask(method, Some("good")).await.status(), 200, "whom it let have it");
    }
    let ranged = rig.ask(Method::GET, &sample.layer_path()).header("range", "bytes=0-9").send().await.unwrap();
    assert_eq!(ranged.status(), 401);
    let elsewhere = rig.get(&sample.layer_path().replace("team/app", "other/repo")).await;
    assert_eq!(elsewhere.status(), 401, "a repository of the stranger's own");
    rig.stop().await;
}
