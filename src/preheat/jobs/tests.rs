use super::*;

const START: SystemTime = SystemTime::UNIX_EPOCH;

fn want(number: usize) -> BlobWant {
    BlobWant {
        registry: "reg.example".parse().unwrap(),
        repo: "app".parse().unwrap(),
        digest: Digest::of(&number.to_le_bytes()),
        length: Some(100),
        is_layer: Some(true),
    }
}

fn request(images: usize) -> Request {
    let images = (0..images).map(|number| format!("reg.example/app:{number}").parse().unwrap()).collect();
    Request { images, platforms: Vec::new(), to: To::Seeds, lazy_index: false }
}

fn fetched(actions: &[Action]) -> Vec<Digest> {
    let digest = |action: &Action| match action {
        Action::Fetch { want, .. } => Some(want.digest),
        _ => None,
    };
    actions.iter().filter_map(digest).collect()
}

fn done(job: JobId, digest: Digest) -> Event {
    Event::Fetched { job, digest, outcome: Ok(()) }
}

#[test]
fn a_job_fetches_each_blob_once_some_at_a_time_and_ends() {
    let (mut jobs, id) = (Jobs::default(), JobId(1));
    let actions = jobs.create(id, request(2), START).unwrap();
    assert_eq!(actions, [Action::Resolve { job: id, image: 0 }, Action::Resolve { job: id, image: 1 }]);
    let blobs: Vec<_> = (0..12).map(want).collect();
    let actions = jobs.on(Event::Resolved { job: id, image: 0, blobs: Ok(blobs[..10].to_vec()) }, START);
    let mut under_way = fetched(&actions);
    assert_eq!(under_way, blobs[..MAX_AT_ONCE].iter().map(|want| want.digest).collect::<Vec<_>>());
    // The second image shares two blobs.
    let actions = jobs.on(Event::Resolved { job: id, image: 1, blobs: Ok(blobs[8..].to_vec()) }, START);
    assert!(actions.is_empty());
    let mut ended = 0;
    while let Some(digest) = under_way.pop() {
        assert_eq!(jobs.get(id).unwrap().state, JobState::Running);
        under_way.extend(fetched(&jobs.on(done(id, digest), START)));
        assert!(under_way.len() <= MAX_AT_ONCE);
        ended += 1;
    }
    let job = jobs.get(id).unwrap();
    assert_eq!((ended, job.state, job.ended), (12, JobState::Done, Some(START)));
    assert!(job.blobs.values().all(|blob| blob.have == 100 && blob.state == BlobState::Done));
}

#[test]
fn what_fails_fails_the_job_and_nothing_else() {
    let (mut jobs, id) = (Jobs::default(), JobId(1));
    jobs.create(id, request(2), START).unwrap();
    jobs.on(Event::Resolved { job: id, image: 0, blobs: Err("no such image".to_owned()) }, START);
    jobs.on(Event::Resolved { job: id, image: 1, blobs: Ok(vec![want(0), want(1)]) }, START);
    let failed = Event::Fetched { job: id, digest: want(0).digest, outcome: Err("HTTP 500".to_owned()) };
    jobs.on(failed, START);
    assert_eq!(jobs.get(id).unwrap().state, JobState::Running);
    jobs.on(done(id, want(1).digest), START);
    let job = jobs.get(id).unwrap();
    assert_eq!((job.state, &*job.blobs[&want(0).digest].error), (JobState::Failed, "HTTP 500"));
    assert_eq!(job.blobs[&want(1).digest].state, BlobState::Done);
}

#[test]
fn a_canceled_job_begins_nothing_any_more() {
    let (mut jobs, id) = (Jobs::default(), JobId(1));
    jobs.create(id, request(1), START).unwrap();
    jobs.on(Event::Resolved { job: id, image: 0, blobs: Ok((0..20).map(want).collect()) }, START);
    assert_eq!(jobs.cancel(id, START), Some(vec![Action::Abort { job: id }]));
    assert!(jobs.on(done(id, want(0).digest), START).is_empty());
    assert_eq!(jobs.get(id).unwrap().state, JobState::Canceled);
    assert_eq!((jobs.cancel(id, START), jobs.cancel(JobId(2), START)), (Some(Vec::new()), None));
    assert_eq!(jobs.running(), 0);
}

#[test]
fn jobs_are_bounded_and_the_oldest_ended_ones_go() {
    let mut jobs = Jobs::default();
    for number in 0..MAX_RUNNING as u64 {
        jobs.create(JobId(number), request(1), START).unwrap();
    }
    assert_eq!(jobs.create(JobId(999), request(1), START), Err(Full));
    for number in MAX_RUNNING as u64..2 * MAX_JOBS as u64 {
        jobs.cancel(JobId(number - 1), START).unwrap();
        jobs.create(JobId(number), request(1), START).unwrap();
    }
    assert_eq!(jobs.list().count(), MAX_JOBS);
    assert!(jobs.get(JobId(0)).is_some(), "a running job is not forgotten");
    assert_eq!(jobs.list().next().unwrap().id, JobId(2 * MAX_JOBS as u64 - 1));
}

#[test]
fn a_job_takes_a_bounded_number_of_blobs() {
    let (mut jobs, id) = (Jobs::default(), JobId(1));
    jobs.create(id, request(1), START).unwrap();
    jobs.on(Event::Resolved { job: id, image: 0, blobs: Ok((0..=MAX_BLOBS).map(want).collect()) }, START);
    let job = jobs.get(id).unwrap();
    assert_eq!(job.blobs.len(), MAX_BLOBS);
    assert!(matches!(&job.images[0].outcome, Some(Err(error)) if error.contains("fewer images")));
}

#[test]
fn a_push_is_one_job_that_ends_with_its_manifest() {
    let mut jobs = Jobs::default();
    let pushed = |jobs: &mut Jobs, id, pushed| jobs.pushed(JobId(id), pushed, To::Seeds, true, START).unwrap();
    let actions = pushed(&mut jobs, 1, Pushed::Blob(BlobWant { length: None, ..want(0) }));
    assert_eq!(fetched(&actions), [want(0).digest], "at once, not with the manifest");
    assert_eq!(fetched(&pushed(&mut jobs, 2, Pushed::Blob(want(1)))), [want(1).digest]);
    assert!(pushed(&mut jobs, 3, Pushed::Blob(want(1))).is_empty(), "told twice");
    assert_eq!(jobs.list().count(), 1);
    let id = JobId(1);
    jobs.on(done(id, want(0).digest), START);
    jobs.on(done(id, want(1).digest), START);
    assert_eq!(jobs.get(id).unwrap().state, JobState::Running, "the manifest is missing");
    let name: ImageName = "reg.example/app:1".parse().unwrap();
    let actions = pushed(&mut jobs, 4, Pushed::Image(name.clone()));
    assert_eq!(actions, [Action::Resolve { job: id, image: 0 }]);
    assert!(pushed(&mut jobs, 5, Pushed::Image(name)).is_empty(), "told twice");
    jobs.on(Event::Resolved { job: id, image: 0, blobs: Ok(vec![want(0), want(1)]) }, START);
    assert_eq!(jobs.get(id).unwrap().state, JobState::Done);

    pushed(&mut jobs, 6, Pushed::Blob(want(7)));
    let other = BlobWant { repo: "other".parse().unwrap(), ..want(8) };
    pushed(&mut jobs, 7, Pushed::Blob(other));
    assert_eq!(jobs.running(), 2, "pushes of two repositories are two");
    jobs.on(done(JobId(6), want(7).digest), START);
    jobs.expire(START + PUSH_PATIENCE / 2);
    assert_eq!(jobs.running(), 2);
    jobs.expire(START + PUSH_PATIENCE);
    assert_eq!(jobs.get(JobId(6)).unwrap().state, JobState::Done, "its manifest never came");
    assert_eq!(jobs.get(JobId(7)).unwrap().state, JobState::Running, "its blob is still coming");
}

#[test]
fn a_blob_that_failed_is_tried_again_when_the_manifest_names_it() {
    let mut jobs = Jobs::default();
    let pushed = |jobs: &mut Jobs, pushed| jobs.pushed(JobId(1), pushed, To::Seeds, true, START).unwrap();
    pushed(&mut jobs, Pushed::Blob(want(0)));
    let missing = Event::Fetched { job: JobId(1), digest: want(0).digest, outcome: Err("HTTP 404".to_owned()) };
    jobs.on(missing, START);
    pushed(&mut jobs, Pushed::Image("reg.example/app:1".parse().unwrap()));
    let actions = jobs.on(Event::Resolved { job: JobId(1), image: 0, blobs: Ok(vec![want(0)]) }, START);
    assert_eq!(fetched(&actions), [want(0).digest]);
    jobs.on(done(JobId(1), want(0).digest), START);
    assert_eq!(jobs.get(JobId(1)).unwrap().state, JobState::Done);
}

#[test]
fn names_of_jobs() {
    assert_eq!(JobId(255).to_string(), "00000000000000ff");
    assert_eq!("00000000000000ff".parse(), Ok(JobId(255)));
    for text in ["", "ff", "zz000000000000ff", "0000000000000000ff", "+0000000000000ff"] {
        assert!(text.parse::<JobId>().is_err(), "{text}");
    }
}
