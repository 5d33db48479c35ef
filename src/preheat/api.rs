//! `/api/v1/preheat/` of the admin listener: jobs are begun, looked at and stopped. [`super::openapi`] describes it to programs.
//!
//! A page of another origin cannot begin a job: it would have to ask before it sends JSON or DELETE, and nobody here says yes.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::jobs::{BlobState, Job, JobImage, JobState, Request};
use super::limits::{MAX_IMAGES, MAX_PLATFORMS, MAX_REQUEST};
use super::name::ImageName;
use super::to::To;
use super::{Preheat, Refused, openapi};

pub(super) const JOBS: &str = "/api/v1/preheat/jobs";
pub(super) const JOB: &str = "/api/v1/preheat/jobs/{id}";
pub(super) const DESCRIPTION: &str = "/api/v1/preheat/openapi.json";

/// Begins a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewJob {
    pub images: Vec<String>,
    #[serde(default)]
    pub platforms: Vec<String>,
    #[serde(default = "seeds")]
    pub to: To,
    #[serde(default)]
    pub lazy_index: bool,
}

const fn seeds() -> To {
    To::Seeds
}

/// A job as it is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JobView {
    pub id: String,
    pub state: JobState,
    /// `command` or `push`.
    pub cause: String,
    pub to: To,
    pub platforms: Vec<String>,
    pub lazy_index: bool,
    /// Unix time.
    pub created: u64,
    pub ended: Option<u64>,
    pub images: Vec<ImageView>,
    pub blobs_total: usize,
    pub blobs_done: usize,
    pub blobs_failed: usize,
    /// Of blobs whose length is known.
    pub bytes_total: u64,
    pub bytes_done: u64,
    /// Left out of listings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<BlobView>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageView {
    pub name: String,
    /// `resolving`, `resolved` or `failed`.
    pub state: String,
    pub blobs: usize,
    pub error: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BlobView {
    pub digest: String,
    pub state: BlobState,
    pub length_bytes: Option<u64>,
    pub have_bytes: u64,
    pub error: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JobList {
    pub jobs: Vec<JobView>,
}

impl JobView {
    fn of(job: &Job) -> Self {
        let unix = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let count = |state| job.blobs.values().filter(|blob| blob.state == state).count();
        let blobs = job.blobs.iter().map(|(digest, blob)| BlobView {
            digest: digest.to_string(),
            state: blob.state,
            length_bytes: blob.want.length,
            have_bytes: blob.have,
            error: blob.error.clone(),
        });
        Self {
            id: job.id.to_string(),
            state: job.state,
            cause: if job.push.is_some() { "push" } else { "command" }.to_owned(),
            to: job.to,
            platforms: job.platforms.clone(),
            lazy_index: job.lazy_index,
            created: unix(job.created),
            ended: job.ended.map(unix),
            images: job.images.iter().map(ImageView::of).collect(),
            blobs_total: job.blobs.len(),
            blobs_done: count(BlobState::Done),
            blobs_failed: count(BlobState::Failed),
            bytes_total: job.blobs.values().filter_map(|blob| blob.want.length).sum(),
            bytes_done: job.blobs.values().map(|blob| blob.have).sum(),
            blobs: blobs.collect(),
        }
    }
}

impl ImageView {
    fn of(image: &JobImage) -> Self {
        let (state, blobs, error) = match &image.outcome {
            None => ("resolving", 0, String::new()),
            Some(Ok(blobs)) => ("resolved", *blobs, String::new()),
            Some(Err(error)) => ("failed", 0, error.clone()),
        };
        Self { name: image.name.to_string(), state: state.to_owned(), blobs, error }
    }
}

/// The methods are those that [`openapi`] lists.
pub(crate) fn routes(preheat: Arc<Preheat>) -> Router {
    Router::new()
        .route(JOBS, get(list).post(create))
        .route(JOB, get(show).delete(cancel))
        .route(DESCRIPTION, get(|| async { Json(openapi::document()) }))
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(preheat)
}

async fn create(State(preheat): State<Arc<Preheat>>, new: Result<Json<NewJob>, JsonRejection>) -> Response {
    let new = match new {
        Ok(Json(new)) => new,
        Err(rejection) => return refusal(rejection.status(), &rejection.body_text()),
    };
    let request = match read(new) {
        Ok(request) => request,
        Err(reason) => return refusal(StatusCode::UNPROCESSABLE_ENTITY, &reason),
    };
    match preheat.create(request) {
        Ok(job) => (StatusCode::ACCEPTED, Json(JobView::of(&job))).into_response(),
        Err(refused @ Refused::NotListed(_)) => refusal(StatusCode::FORBIDDEN, &refused),
        Err(refused @ Refused::Full(_)) => refusal(StatusCode::TOO_MANY_REQUESTS, &refused),
    }
}

async fn list(State(preheat): State<Arc<Preheat>>) -> Json<JobList> {
    let brief = |job: &Job| JobView { blobs: Vec::new(), ..JobView::of(job) };
    Json(JobList { jobs: preheat.list().iter().map(brief).collect() })
}

async fn show(State(preheat): State<Arc<Preheat>>, Path(id): Path<String>) -> Response {
    answered(&id, id.parse().ok().and_then(|id| preheat.get(id)))
}

async fn cancel(State(preheat): State<Arc<Preheat>>, Path(id): Path<String>) -> Response {
    answered(&id, id.parse().ok().and_then(|id| preheat.cancel(id)))
}

fn answered(id: &str, job: Option<Job>) -> Response {
    let shown: String = id.chars().take(64).collect();
    match job {
        Some(job) => Json(JobView::of(&job)).into_response(),
        None => refusal(
            StatusCode::NOT_FOUND,
            &format_args!("no job {shown:?} is remembered here; `lapwing preheat --list` shows those that are"),
        ),
    }
}

fn refusal(status: StatusCode, reason: &dyn std::fmt::Display) -> Response {
    (status, format!("{reason}\n")).into_response()
}

fn read(new: NewJob) -> Result<Request, String> {
    let NewJob { images, platforms, to, lazy_index } = new;
    if images.is_empty() || images.len() > MAX_IMAGES {
        return Err(format!("{} images: a job has 1 to {MAX_IMAGES}", images.len()));
    }
    if platforms.len() > MAX_PLATFORMS {
        return Err(format!("{} platforms: a job has at most {MAX_PLATFORMS}", platforms.len()));
    }
    for platform in &platforms {
        check_platform(platform)?;
    }
    let images = images.iter().map(|image| image.parse::<ImageName>()).collect::<Result<_, _>>()?;
    Ok(Request { images, platforms, to, lazy_index })
}

fn check_platform(text: &str) -> Result<(), String> {
    let is_word = |word: &str| {
        (1..=32).contains(&word.len())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let words: Vec<&str> = text.split('/').collect();
    if text == "all" || ((2..=3).contains(&words.len()) && words.into_iter().all(is_word)) {
        return Ok(());
    }
    let shown: String = text.chars().take(64).collect();
    Err(format!("platform {shown:?}: expected OS/ARCHITECTURE, such as linux/arm64, or \"all\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(images: usize) -> NewJob {
        let images = (0..images).map(|number| format!("reg.example/app:{number}")).collect();
        NewJob { images, platforms: Vec::new(), to: To::Here, lazy_index: false }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_by_name() {
        assert_eq!(read(new(MAX_IMAGES)).unwrap().images.len(), MAX_IMAGES);
        let platforms =
            |platforms: Vec<&str>| NewJob { platforms: platforms.into_iter().map(str::to_owned).collect(), ..new(1) };
        assert!(read(platforms(vec!["all", "linux/amd64", "linux/arm/v7"])).is_ok());
        let cases = [
            (new(0), "images"),
            (new(MAX_IMAGES + 1), "images"),
            (platforms(vec!["all"; MAX_PLATFORMS + 1]), "platforms"),
            (platforms(vec!["amd64"]), "amd64"),
            (platforms(vec!["linux/a b"]), "a b"),
            (NewJob { images: vec!["http://x/y".to_owned()], ..new(1) }, "http://x/y"),
        ];
        for (bad, hint) in cases {
            let error = read(bad).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }
}
