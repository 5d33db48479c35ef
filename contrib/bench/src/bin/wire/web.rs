//! The yardstick: nginx with sendfile, one worker, as Debian builds it.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use crate::{Wire, text};

const READY: Duration = Duration::from_secs(20);

/// A running nginx; it ends when dropped.
pub(crate) struct Nginx {
    child: Child,
    plaintext: u16,
    tls: u16,
}

impl Nginx {
    /// Serves `data` as `/data`.
    pub(crate) fn start(directory: &Path, data: &Path) -> anyhow::Result<Self> {
        let home = directory.join("nginx");
        std::fs::create_dir_all(home.join("logs"))?;
        std::os::unix::fs::symlink(data, home.join("data"))?;
        let (plaintext, tls) = (crate::node::free_port()?, crate::node::free_port()?);
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=localhost", "-days", "2"])
            .args(["-keyout", &text(&home.join("key.pem")), "-out", &text(&home.join("certificate.pem"))])
            .stderr(Stdio::null())
            .status()
            .context("openssl is needed")?;
        anyhow::ensure!(made.success(), "openssl: {made}");
        let home_text = text(&home);
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {home_text}/{name};\n"))
            .collect();
        let config = format!(
            "user root;\ndaemon off;\nmaster_process off;\nerror_log {home_text}/logs/error.log;\npid {home_text}/pid;\n\
             events {{}}\nhttp {{\n{paths}access_log off;\nsendfile on;\ntcp_nopush on;\nserver {{\nroot {home_text};\n\
             listen 127.0.0.1:{plaintext};\nlisten 127.0.0.1:{tls} ssl;\nssl_protocols TLSv1.3;\n\
             ssl_certificate {home_text}/certificate.pem;\nssl_certificate_key {home_text}/key.pem;\n}}\n}}\n"
        );
        std::fs::write(home.join("nginx.conf"), config)?;
        let program = std::env::var("LAPWING_NGINX").unwrap_or_else(|_| "nginx".to_owned());
        let child = Command::new(&program)
            .args(["-p", &home_text, "-c", "nginx.conf", "-e", "logs/error.log"])
            .spawn()
            .with_context(|| format!("cannot start {program}; contrib/setup/nginx.sh fetches it"))?;
        let mut started = Self { child, plaintext, tls };
        started.wait_ready(&home)?;
        Ok(started)
    }

    fn wait_ready(&mut self, home: &Path) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.tls)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                let log = std::fs::read_to_string(home.join("logs/error.log")).unwrap_or_default();
                anyhow::bail!("nginx ended with {status}: {log}");
            }
            anyhow::ensure!(Instant::now() < deadline, "nginx does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn address(&self, wire: Wire) -> String {
        let port = if wire == Wire::Plaintext { self.plaintext } else { self.tls };
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// TLS 1.3 with the library that nodes use, believing the server that this program started.
pub(crate) fn client_config() -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believe))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Believe;

impl ServerCertVerifier for Believe {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
