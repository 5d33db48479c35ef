//! `lapwing get`: files by their URLs, through the node on this machine, or straight from their source.
//!
//! * [`target`], [`place`]: what is asked for, and under which names it goes
//! * [`tree`], [`links`], [`objects`], [`image`]: many at once: listings, buckets, images
//! * [`ways`], [`neighbour`]: the node, and the source; whether who listens in the node's place may be told anything
//! * [`transfer`]: tries, rates, and where bytes come from
//! * [`part`]: the file while it is not whole
//! * [`progress`], [`outcome`]: what is said of it
//!
//! The node is asked by its mirror's port (`/url/`, `/v2/`), and decides what may come out of the swarm (`plugins::http`): whoever brings
//! credentials gets what its source gives to these, and shares it only where the source says that it is public.

mod image;
mod limits;
mod links;
mod neighbour;
mod objects;
mod outcome;
mod part;
mod place;
mod progress;
mod target;
mod transfer;
mod tree;
mod ways;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use axum::http::HeaderMap;
use reqwest::Url;

use self::objects::{Bucket, Location};
use self::outcome::{Failed, Fault, Report};
use self::part::{Promise, Sink};
use self::place::{Place, Speech};
use self::progress::{Meter, Teller};
use self::transfer::{Came, Fetcher};
use self::ways::{NodeChoice, Ways, WaysConfig};
use crate::cli::Get;

/// What one argument means.
enum Wanted {
    Url(Url, HeaderMap),
    Object(Location),
    Image(image::Name),
}

/// One file to be.
struct Item {
    source: Source,
    headers: HeaderMap,
    promise: Promise,
    /// None: standard output.
    file: Option<PathBuf>,
}

enum Source {
    Known(Place),
    /// Signed when its turn has come.
    Object(Bucket, String),
}

/// One run of the command.
struct Run<'a> {
    arguments: &'a Get,
    fetcher: Fetcher,
    headers: HeaderMap,
    promise: Promise,
    worst: Option<Fault>,
}

pub(crate) async fn run(arguments: &Get) -> anyhow::Result<ExitCode> {
    let teller = Teller::new(arguments.quiet);
    let (mut run, wanted) = match prepare(arguments, teller) {
        Ok(prepared) => prepared,
        Err(failed) => {
            teller.error(&failed.reason);
            return Ok(ExitCode::from(failed.fault as u8));
        }
    };
    for wanted in wanted {
        if let Err(failed) = run.all(wanted).await {
            teller.error(&failed.reason);
            run.count(failed.fault);
        }
    }
    Ok(run.worst.map_or(ExitCode::SUCCESS, |fault| ExitCode::from(fault as u8)))
}

fn prepare(arguments: &Get, teller: Teller) -> Result<(Run<'_>, Vec<Wanted>), Failed> {
    let usage = |reason: &str| Failed::new(Fault::Usage, reason);
    let promise = target::promise(arguments.digest.as_deref(), arguments.md5.as_deref())?;
    let promised = promise.sha256.is_some() || promise.md5.is_some();
    if arguments.urls.len() > 1 && (arguments.output.is_some() || promised) {
        return Err(usage("-O, --digest and --md5 are for one URL; use -P for the directory of several"));
    }
    let headers = target::headers(&arguments.header)?;
    let (mut wanted, mut filter) = (Vec::new(), arguments.filter_query.clone());
    for text in &arguments.urls {
        wanted.push(if let Some(rest) = text.strip_prefix("oci://") {
            Wanted::Image(image::Name::parse(rest)?)
        } else if let Some(rest) = text.strip_prefix("s3://") {
            filter.push(objects::SIGNATURE.to_owned());
            Wanted::Object(Location::parse(rest)?)
        } else {
            let mut own = headers.clone();
            Wanted::Url(target::url(text, &mut own)?, own)
        });
    }
    let single = |wanted: &Wanted| !arguments.recursive && !matches!(wanted, Wanted::Image(_));
    if promised && !wanted.iter().all(single) {
        return Err(usage("--digest and --md5 are for one file; of an image, write the digest in its name"));
    }
    if arguments.output.as_deref() == Some(Path::new("-")) && !wanted.iter().all(single) {
        return Err(usage("-O -: standard output is for one file"));
    }
    let silence = arguments.timeout.0;
    if silence.is_zero() {
        return Err(usage("--timeout: at least 1ms"));
    }
    let node = match arguments.node {
        _ if arguments.no_p2p => NodeChoice::None,
        Some(node) => NodeChoice::Named(node),
        None => NodeChoice::Usual,
    };
    let config = WaysConfig { node, silence, ca_file: arguments.ca_certificate.clone() };
    let rate = arguments.limit_rate.map(|rate| rate.0).filter(|&rate| rate > 0);
    let ways = Ways::new(&config, teller)?;
    let fetcher = Fetcher { ways, teller, filter, tries: arguments.tries, silence, rate };
    Ok((Run { arguments, fetcher, headers, promise, worst: None }, wanted))
}

impl Run<'_> {
    fn count(&mut self, fault: Fault) {
        self.worst = Some(self.worst.map_or(fault, |worst| worst.min(fault)));
    }

    /// Everything that one argument means; what fails of it is told and counted, or given back if nothing can be begun.
    async fn all(&mut self, wanted: Wanted) -> Result<(), Failed> {
        match wanted {
            Wanted::Image(name) => return self.image(&name).await,
            Wanted::Url(url, headers) if self.arguments.recursive => {
                let top = self.directory(&file_or_host(&url))?;
                for leaf in tree::walk(&self.fetcher.ways, &url, &headers, self.fetcher.teller).await? {
                    let source = Source::Known(Place::Url(leaf.url));
                    self.file(source, headers.clone(), Some(top.join(leaf.file))).await;
                }
            }
            Wanted::Url(url, headers) => {
                let file = self.name(|| target::file_name(&url))?;
                self.file(Source::Known(Place::Url(url)), headers, file).await;
            }
            Wanted::Object(at) => {
                let bucket = Bucket::open(&at.bucket)?;
                if !self.arguments.recursive {
                    let unfit = || {
                        Failed::new(Fault::Usage, format!("s3://{}/{}: name an object, or add -r", at.bucket, at.key))
                    };
                    let file = self.name(|| target::segment(at.name()).map(PathBuf::from).ok_or_else(unfit))?;
                    self.file(Source::Object(bucket, at.key.clone()), HeaderMap::new(), file).await;
                    return Ok(());
                }
                let (top, prefix) = (self.directory(Path::new(at.name()))?, at.as_prefix());
                for key in bucket.keys(&prefix).await? {
                    let rest = key.strip_prefix(&prefix).unwrap_or(&key);
                    let Some(file) = tree::plain(&top, rest) else {
                        self.fetcher.teller.error(&format!("{key:?}: left out, since this is no name for a file"));
                        self.count(Fault::File);
                        continue;
                    };
                    self.file(Source::Object(bucket.clone(), key), HeaderMap::new(), Some(file)).await;
                }
            }
        }
        Ok(())
    }

    /// Where one file goes; none for standard output.
    fn name(&self, own: impl FnOnce() -> Result<PathBuf, Failed>) -> Result<Option<PathBuf>, Failed> {
        Ok(match &self.arguments.output {
            Some(output) if output == Path::new("-") => None,
            Some(output) => Some(output.clone()),
            None => Some(self.prefix()?.join(own()?)),
        })
    }

    /// Where many go.
    fn directory(&self, own: &Path) -> Result<PathBuf, Failed> {
        match &self.arguments.output {
            Some(output) => Ok(output.clone()),
            None => Ok(self.prefix()?.join(own)),
        }
    }

    fn prefix(&self) -> Result<PathBuf, Failed> {
        let Some(directory) = &self.arguments.directory_prefix else { return Ok(PathBuf::new()) };
        std::fs::create_dir_all(directory).map_err(|error| Failed::file(directory, error))?;
        Ok(directory.clone())
    }

    async fn image(&mut self, name: &image::Name) -> Result<(), Failed> {
        let directory = self.directory(&name.directory())?;
        let speech = Speech {
            headers: &self.headers.clone(),
            silence: self.fetcher.silence,
            ca_file: self.arguments.ca_certificate.as_deref(),
            plain_http: self.arguments.plain_http,
        };
        let platform = self.arguments.platform.as_deref();
        let image = image::open(&self.fetcher.ways, name, platform, &directory, &speech).await?;
        let mut whole = true;
        for (place, digest, file) in &image.blobs {
            let promise = Promise { sha256: Some(digest.hex()), md5: None };
            let (source, file) = (Source::Known(place.clone()), Some(file.clone()));
            whole &= self.held(Item { source, headers: self.headers.clone(), promise, file }).await;
        }
        // What failed was told, file by file.
        if whole { image.finish() } else { Ok(()) }
    }

    /// Fetches one file, which must be what the command line promised, if it did.
    async fn file(&mut self, source: Source, headers: HeaderMap, file: Option<PathBuf>) {
        self.held(Item { source, headers, promise: self.promise.clone(), file }).await;
    }

    /// Fetches one file, and says how it went; whether it is there.
    async fn held(&mut self, item: Item) -> bool {
        let outcome = one(&self.fetcher, self.arguments, item).await;
        if let Err(failed) = &outcome {
            self.count(failed.fault);
        }
        outcome.is_ok()
    }
}

/// The directory for all below a URL: its last part, or the host.
fn file_or_host(url: &Url) -> PathBuf {
    let last = url.path().trim_end_matches('/').rsplit('/').next().and_then(target::segment);
    last.unwrap_or_else(|| url.host_str().unwrap_or_default().to_owned()).into()
}

async fn one(fetcher: &Fetcher, arguments: &Get, item: Item) -> Result<(), Failed> {
    let (began, mut came, meter) = (Instant::now(), Came::default(), Arc::new(Meter::default()));
    let shown = match &item.source {
        Source::Known(place) => fetcher.identity(place),
        Source::Object(_, key) => key.clone(),
    };
    let name = item
        .file
        .as_deref()
        .map_or("-".to_owned(), |file| file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned());
    let work = async {
        let place = match item.source {
            Source::Known(place) => place,
            Source::Object(bucket, key) => Place::Url(bucket.link(&key).await?),
        };
        let mut sink = match &item.file {
            None => Sink::stdout(item.promise),
            Some(file) => {
                let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
                directory.map_or(Ok(()), std::fs::create_dir_all).map_err(|error| Failed::file(file, error))?;
                Sink::file(file, &fetcher.identity(&place), item.promise, !arguments.no_continue)?
            }
        };
        fetcher.fetch(&place, &item.headers, &mut sink, &meter, &mut came).await
    };
    let outcome = fetcher.teller.during(&name, &meter, work).await;
    match &outcome {
        Ok(()) => fetcher.teller.done(&name, came.bytes, came.resumed, came.split, began.elapsed()),
        Err(failed) => fetcher.teller.error(&failed.reason),
    }
    if arguments.json {
        let report = Report {
            url: shown,
            ok: outcome.is_ok(),
            exit_code: outcome.as_ref().err().map_or(0, |failed| failed.fault as u8),
            error: outcome.as_ref().err().map(ToString::to_string),
            bytes: came.bytes,
            resumed_bytes: came.resumed,
            split: came.split,
            seconds: began.elapsed().as_secs_f64(),
            via: came.via,
            shared: came.shared,
            not_shared_because: came.because,
            file: item.file,
        };
        print(&report);
    }
    outcome
}

/// On standard error where standard output is the content's.
fn print(report: &Report) {
    let Ok(line) = serde_json::to_string(report) else { return };
    let aside = report.file.is_none();
    let _ = if aside { writeln!(std::io::stderr(), "{line}") } else { writeln!(std::io::stdout(), "{line}") };
}
