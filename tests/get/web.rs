//! A web server that has versions, ranges, redirects, passwords and faults, and remembers what it was asked.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lapwing_lab::Host;

pub(crate) const PORT: u16 = 8080;

/// What stands at a path.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    pub body: Arc<Vec<u8>>,
    /// Further header lines, each with its end.
    pub headers: String,
    pub etag: Option<String>,
    pub redirect: Option<String>,
    /// The only `Authorization` that is let in.
    pub authorization: Option<String>,
    /// Ranges are given of whatever version there is.
    pub heedless: bool,
    /// The first answer with a body ends after so many bytes.
    pub cut_after: Option<usize>,
}

impl Page {
    pub(crate) fn of(body: &[u8]) -> Self {
        Self { body: Arc::new(body.to_vec()), etag: Some(format!("\"v{}\"", body.len())), ..Self::default() }
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self { redirect: Some(to.to_owned()), ..Self::default() }
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub headers: HashMap<String, String>,
}

#[derive(Default)]
struct Shared {
    pages: Mutex<HashMap<String, Page>>,
    asked: Mutex<Vec<Asked>>,
    sent: AtomicU64,
    ended: AtomicBool,
}

pub(crate) struct Web {
    host: Host,
    shared: Arc<Shared>,
}

impl Web {
    pub(crate) fn start(host: &Host) -> Self {
        let listener = host.within(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?)).unwrap();
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let (client, shared) = (client.unwrap(), Arc::clone(&serving));
                std::thread::spawn(move || drop(shared.answer(client)));
            }
        });
        Self { host: host.clone(), shared }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}.lab:{PORT}{path}", self.host.name())
    }

    pub(crate) fn put(&self, path: &str, page: Page) {
        self.shared.pages.lock().unwrap().insert(path.to_owned(), page);
    }

    /// Bytes of bodies.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    pub(crate) fn asked(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.shared.asked.lock().unwrap()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = self.host.within(|| Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?));
    }
}

impl Shared {
    fn answer(&self, mut client: TcpStream) -> std::io::Result<()> {
        client.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut reader = BufReader::new(client.try_clone()?);
        let (mut line, mut headers) = (String::new(), HashMap::new());
        reader.read_line(&mut line)?;
        loop {
            let mut text = String::new();
            reader.read_line(&mut text)?;
            let Some((name, value)) = text.trim().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let line = line.trim().to_owned();
        let path = line.split(' ').nth(1).unwrap_or("/").split('?').next().unwrap().to_owned();
        let head = line.starts_with("HEAD ");
        self.asked.lock().unwrap().push(Asked { headers: headers.clone() });
        let page = self.pages.lock().unwrap().get(&path).cloned();
        let Some(page) = page else { return client.write_all(&head_of("404 Not Found", "", 0)) };
        if page.authorization.as_ref().is_some_and(|wanted| headers.get("authorization") != Some(wanted)) {
            return client.write_all(&head_of("401 Unauthorized", "", 0));
        }
        if let Some(to) = &page.redirect {
            return client.write_all(&head_of("302 Found", &format!("Location: {to}\r\n"), 0));
        }
        let mut fields = page.headers.clone();
        if let Some(etag) = &page.etag {
            fields.push_str(&format!("ETag: {etag}\r\nAccept-Ranges: bytes\r\n"));
        }
        let length = page.body.len();
        let same = page.heedless || headers.get("if-range").is_none_or(|tag| Some(tag) == page.etag.as_ref());
        let range = headers.get("range").filter(|_| same && page.etag.is_some()).and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            let last = if last.is_empty() { length - 1 } else { last.parse().ok()? };
            Some(first.parse().ok()?..last.min(length - 1) + 1)
        });
        let (status, range) = match range {
            Some(range) => {
                fields.push_str(&format!("Content-Range: bytes {}-{}/{length}\r\n", range.start, range.end - 1));
                ("206 Partial Content", range)
            }
            None => ("200 OK", 0..length),
        };
        client.write_all(&head_of(status, &fields, range.len()))?;
        if head {
            return Ok(());
        }
        let mut body = &page.body[range];
        if let Some(most) = page.cut_after {
            body = &body[..body.len().min(most)];
            self.pages.lock().unwrap().get_mut(&path).unwrap().cut_after = None;
        }
        for chunk in body.chunks(256 << 10) {
            client.write_all(chunk)?;
            self.sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
        Ok(())
    }
}

fn head_of(status: &str, fields: &str, length: usize) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n").into_bytes()
}
