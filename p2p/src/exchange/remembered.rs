//! The peers that a node remembers, on disk: `<root>/peers`, text, a line saying what it is, then `<peer> <address>` for
//! each, most recently met last.
//!
//! It is replaced in one step, without being made durable: after a crash the file is as it was before or after, or lost with
//! the machine's power, which costs what discovery knows anyway. What stands in it is believed as little as an answer of a
//! peer: lines that make no sense are skipped, and who is dialled must prove who it is.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::digest::Digest;
use crate::discovery::may_dial;
use crate::identity::PeerId;
use crate::limits::{MAX_PEERS_FILE_LENGTH, MAX_REMEMBERED_PEERS};

const FILE: &str = "peers";
const HEADER: &str = "lapwing peers 1";

/// What a former process remembered; nothing if there is no such file, or it is none of this version.
pub(crate) fn load(directory: &Path) -> Vec<(PeerId, SocketAddr)> {
    let path = directory.join(FILE);
    let mut text = String::new();
    let read = File::open(&path).and_then(|file| file.take(MAX_PEERS_FILE_LENGTH).read_to_string(&mut text));
    match read {
        Ok(_) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "peers of a former process are not remembered");
            Vec::new()
        }
    }
}

/// Replaces the file.
pub(crate) fn save(directory: &Path, peers: &[(PeerId, SocketAddr)]) -> io::Result<()> {
    let (path, beside) = (directory.join(FILE), directory.join("peers.new"));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(encode(peers).as_bytes())?;
    drop(file);
    std::fs::rename(beside, path)
}

fn encode(peers: &[(PeerId, SocketAddr)]) -> String {
    let lines =
        peers.iter().map(|(peer, address)| format!("{} {address}\n", Digest::from_bytes(*peer.as_bytes()).hex()));
    std::iter::once(format!("{HEADER}\n")).chain(lines).collect()
}

fn parse(text: &str) -> Vec<(PeerId, SocketAddr)> {
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Vec::new();
    }
    let line = |line: &str| {
        let (peer, address) = line.split_once(' ')?;
        let peer = PeerId::from_bytes(*Digest::from_own_hex(peer)?.as_bytes());
        let address: SocketAddr = address.parse().ok()?;
        (address.port() != 0 && may_dial(address.ip(), true)).then_some((peer, address))
    };
    lines.filter_map(line).take(MAX_REMEMBERED_PEERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(count: u16) -> Vec<(PeerId, SocketAddr)> {
        let peer =
            |number: u16| (PeerId::from_bytes([number as u8; 32]), SocketAddr::from(([10, 0, 0, 1], 1 + number)));
        (0..count).map(peer).collect()
    }

    #[test]
    fn what_was_saved_is_loaded_and_replaced() {
        let directory = tempfile::tempdir().unwrap();
        assert!(load(directory.path()).is_empty(), "there is none yet");
        for count in [200, 3] {
            save(directory.path(), &peers(count)).unwrap();
            assert_eq!(load(directory.path()), peers(count));
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_skipped_and_many_are_too_many() {
        let peer = "ab".repeat(32);
        let good = format!("{peer} 10.0.0.1:7081\n");
        let bad = [
            format!("{peer} 169.254.169.254:80\n"),
            format!("{peer} 0.0.0.0:80\n"),
            format!("{peer} 10.0.0.1:0\n"),
            format!("{peer} host:80\n"),
            "abc 10.0.0.1:1\n".to_owned(),
            "\n".to_owned(),
            good[..70].to_owned() + "\n",
        ];
        let text = format!("{HEADER}\n{}{good}", bad.concat());
        let found = parse(&text);
        assert!(found.len() <= 2 && found.last().unwrap().1 == "10.0.0.1:7081".parse().unwrap(), "{found:?}");
        assert!(parse(&good).is_empty(), "no header");
        assert_eq!(parse(&format!("{HEADER}\n{}", good.repeat(5000))).len(), MAX_REMEMBERED_PEERS);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), [0xff; 100]).unwrap();
        assert!(load(directory.path()).is_empty());
    }
}
