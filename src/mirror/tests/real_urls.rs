//! Plain URLs of real web servers: nginx (entity tags, ranges), and Python's (dates, no ranges).

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;

use super::fake::{Fake, status};
use super::rig::{Rig, RigSettings, header, tracker};

const LENGTH: usize = 3_000_001;

/// A server of a directory; ends with the guard.
struct Server {
    address: SocketAddr,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    async fn start(mut command: Command, address: SocketAddr) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut server = Self { address, child };
        while std::net::TcpStream::connect(address).is_err() {
            assert!(server.child.try_wait().unwrap().is_none(), "{command:?} ended");
            tokio::task::yield_now().await;
        }
        server
    }
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn nginx(address: SocketAddr, directory: &Path) -> Command {
    let own = directory.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {own}/{kind};\n"))
        .collect();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {own}/pid;\nerror_log {own}/error.log;\nevents {{}}\n\
         http {{\naccess_log off;\n{temporary}server {{ listen {address}; root {own}/files; }}\n}}\n"
    );
    std::fs::write(directory.join("nginx.conf"), config).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-e").arg(directory.join("error.log")).arg("-c").arg(directory.join("nginx.conf"));
    command
}

fn python(address: SocketAddr, directory: &Path) -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "http.server", "--protocol", "HTTP/1.1", "--bind", "127.0.0.1", "--directory"]);
    command.arg(directory.join("files")).arg(address.port().to_string());
    command
}

/// Writes the file as it was so many hours ago; gives its content.
fn write(directory: &Path, hours_ago: u64) -> Vec<u8> {
    let mut content = vec![0; LENGTH];
    fastrand::Rng::with_seed(hours_ago).fill(&mut content);
    // In one step, as good publishers do: a server that is sending goes on with the old file.
    let (new, path) = (directory.join("new"), directory.join("files/release.bin"));
    std::fs::write(&new, &content).unwrap();
    let modified = SystemTime::now() - Duration::from_secs(hours_ago * 3600);
    std::fs::File::options().append(true).open(&new).unwrap().set_modified(modified).unwrap();
    std::fs::rename(new, path).unwrap();
    content
}

async fn two_nodes_follow_a_file(command: fn(SocketAddr, &Path) -> Command, most_copies: f64) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("files")).unwrap();
    let old = write(directory.path(), 9);
    let address = free_address();
    let server = Server::start(command(address, directory.path()), address).await;
    let (registry, tracker) = (Fake::start(|_| status(404, &[])).await, tracker().await);
    let mut rigs = Vec::new();
    for _ in 0..2 {
        let settings = RigSettings {
            allow: vec![server.address.to_string()],
            first_byte: Duration::from_secs(60),
            ..RigSettings::new(&registry, tracker)
        };
        rigs.push(Rig::start_with(&registry, settings).await);
    }
    let path = format!("/url/http/{address}/release.bin");
    let ask = |rig: &Rig| rig.client.get(format!("http://{}{path}", rig.address)).send();
    let pull = async |content: &[u8]| {
        for body in join_all(rigs.iter().map(async |rig| {
            let response = ask(rig).await.unwrap();
            assert_eq!((response.status().as_u16(), header(&response, "cache-status")), (200, Some("lapwing; hit")));
            response.bytes().await.unwrap()
        }))
        .await
        {
            assert!(body == content, "wrong bytes");
        }
        let blobs = rigs.iter().flat_map(|rig| rig.node.blobs()).filter(|blob| blob.digest.is_name());
        blobs.map(|blob| blob.bytes_from_origin).sum::<u64>() as f64 / LENGTH as f64
    };
    let copies = pull(&old).await;
    assert!(copies <= most_copies, "{copies} copies");
    assert_eq!(pull(&old).await, copies, "304 is enough");
    let new = write(directory.path(), 5);
    let both = pull(&new).await;
    assert!(both <= 2.0 * most_copies, "{both} copies of two versions");
    let part = rigs[0].client.get(format!("http://{}{path}", rigs[0].address)).header("range", "bytes=1000000-1000099");
    let part = part.send().await.unwrap();
    assert_eq!(part.status(), 206);
    assert!(part.bytes().await.unwrap() == new[1_000_000..1_000_100]);
    for rig in rigs {
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_nginx() {
    if !Path::new("/usr/sbin/nginx").exists() {
        eprintln!("skipped: /usr/sbin/nginx is not installed (Debian package nginx-light)");
        return;
    }
    two_nodes_follow_a_file(nginx, 1.05).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_a_server_without_ranges_and_entity_tags() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: python3 is not installed");
        return;
    }
    // Both nodes may begin before either knows that ranges are not served.
    two_nodes_follow_a_file(python, 2.05).await;
}
