//! docker's `config.json`, the `.dockerconfigjson` of a Kubernetes secret, its forerunner `.dockercfg`, and the credential
//! helpers that they name.
//!
//! Sources: docker/cli `cli/config` ("Credential store options and helpers"); docker-credential-helpers' protocol; Kubernetes'
//! `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg` secrets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::super::credential::Secret;
use super::pattern::Pattern;
use super::{program, read_bounded};
use crate::limits::MAX_CREDENTIAL_FILES;

/// What credential stores call Docker Hub.
const HUB: &str = "https://index.docker.io/v1/";
/// The user name beside an identity token.
const TOKEN_USER: &str = "<token>";

/// One file.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ConfigFile {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// The secret for a repository of a registry from `path`: a file, or a directory of such files (mounted secrets). Everything is
/// read at each use. The first file that has one counts.
pub(super) async fn secret(path: &Path, registry: &str, repository: &str) -> Result<Option<Secret>, String> {
    for file in files(path)? {
        let config = parse(&read_bounded(&file)?).map_err(|error| format!("{}: {error}", file.display()))?;
        if let Some(secret) = config.secret(registry, repository).await? {
            return Ok(Some(secret));
        }
    }
    Ok(None)
}

/// `path`, or what a directory has of such files: in itself and in its directories, as secrets are mounted.
fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    if !path.metadata().map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let list = |directory: &Path| -> Result<Vec<PathBuf>, std::io::Error> {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(directory)?.filter_map(Result::ok).map(|entry| entry.path()).collect();
        entries.sort();
        Ok(entries)
    };
    let is_one = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let is_named = matches!(&*name, ".dockerconfigjson" | ".dockercfg") || name.ends_with(".json");
        is_named && file.is_file()
    };
    // Kubernetes keeps the versions of a mounted secret in directories that begin with "..".
    let is_version = |entry: &PathBuf| entry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."));
    let entries = list(path).map_err(failed)?;
    let nested =
        entries.iter().filter(|entry| entry.is_dir() && !is_version(entry)).filter_map(|inner| list(inner).ok());
    let nested: Vec<PathBuf> = nested.flatten().collect();
    Ok(entries.into_iter().chain(nested).filter(is_one).take(MAX_CREDENTIAL_FILES).collect())
}

fn parse(text: &str) -> Result<ConfigFile, String> {
    // serde_json's message may quote the input, which holds secrets: only the position is passed on.
    let wrong = |error: serde_json::Error| {
        format!("not a docker config.json (line {}, column {})", error.line(), error.column())
    };
    let all: BTreeMap<String, serde_json::Value> = serde_json::from_str(text).map_err(wrong)?;
    let is_former = !all.is_empty() && all.values().all(serde_json::Value::is_object) && !all.contains_key("auths");
    let is_former = is_former && !all.contains_key("credHelpers");
    if is_former {
        let auths = serde_json::from_str(text).map_err(wrong)?;
        return Ok(ConfigFile { auths, ..ConfigFile::default() });
    }
    serde_json::from_str(text).map_err(wrong)
}

impl ConfigFile {
    async fn secret(&self, registry: &str, repository: &str) -> Result<Option<Secret>, String> {
        let own = self.helpers.iter().find(|(host, _)| Pattern::parse(host).matches(registry, repository));
        if let Some((host, helper)) = own {
            return ask(helper, host).await;
        }
        let entries = self.auths.iter().map(|(key, entry)| (Pattern::parse(key), entry));
        let matching = entries.filter(|(pattern, entry)| !entry.is_empty() && pattern.matches(registry, repository));
        if let Some((_, entry)) = matching.max_by_key(|(pattern, _)| pattern.rank()) {
            return entry.secret(registry).map(Some);
        }
        if self.store.is_empty() {
            return Ok(None);
        }
        ask(&self.store, if registry == "docker.io" { HUB } else { registry }).await
    }
}

impl Entry {
    /// As docker leaves it where a credential store has the secret.
    fn is_empty(&self) -> bool {
        self.auth.is_empty() && self.username.is_empty() && self.identitytoken.is_empty()
    }

    fn secret(&self, registry: &str) -> Result<Secret, String> {
        if !self.identitytoken.is_empty() {
            return Ok(Secret::Identity(self.identitytoken.clone()));
        }
        if !self.username.is_empty() {
            return Ok(Secret::Password { username: self.username.clone(), password: self.password.clone() });
        }
        let decoded = STANDARD.decode(&self.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
        let (username, password) = pair.ok_or_else(|| format!("the entry of {registry} has no usable auth"))?;
        Ok(Secret::Password { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() })
    }
}

/// What `docker-credential-<helper>` has for a server.
async fn ask(helper: &str, server: &str) -> Result<Option<Secret>, String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if helper.is_empty() || !helper.bytes().all(is_name) {
        return Err(format!("{helper:?} is no name of a credential helper"));
    }
    ask_program(Path::new(&format!("docker-credential-{helper}")), server).await
}

/// `<program> get`; none if it knows none.
async fn ask_program(program: &Path, server: &str) -> Result<Option<Secret>, String> {
    let said = program::run(program, &["get".to_owned()], &[], server.as_bytes()).await?;
    if !said.succeeded {
        // "credentials not found in native keychain" is all that the protocol has for this.
        let unknown = String::from_utf8_lossy(&said.output).contains("not found");
        return if unknown { Ok(None) } else { Err(format!("{} failed", program.display())) };
    }
    let answer: Answer = serde_json::from_slice(&said.output)
        .map_err(|error| format!("{}: not an answer (column {})", program.display(), error.column()))?;
    Ok(Some(if answer.username == TOKEN_USER {
        Secret::Identity(answer.secret)
    } else {
        Secret::Password { username: answer.username, password: answer.secret }
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    async fn basic_of(registry: &str, repository: &str, text: &str) -> Option<String> {
        let secret = parse(text).unwrap().secret(registry, repository).await.unwrap()?;
        Some(secret.basic()?.to_str().unwrap().to_owned())
    }

    fn basic(pair: &str) -> Option<String> {
        Some(format!("Basic {}", STANDARD.encode(pair)))
    }

    #[tokio::test]
    async fn entries_of_all_forms() {
        let auth = STANDARD.encode("user:pa:ss");
        let text = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}},"https://reg.example:443":{{"username":"u","password":"p"}},
            "id.example":{{"identitytoken":"t"}},"broken.example":{{"auth":"!"}},"empty.example":{{}}}}}}"#
        );
        assert_eq!(basic_of("docker.io", "library/x", &text).await, basic("user:pa:ss"));
        assert_eq!(basic_of("reg.example:443", "x", &text).await, basic("u:p"));
        assert_eq!(basic_of("reg.example", "x", &text).await, None, "another port is another registry");
        assert_eq!(basic_of("empty.example", "x", &text).await, None);
        let config = parse(&text).unwrap();
        let identity = config.secret("id.example", "x").await.unwrap();
        assert!(matches!(identity, Some(Secret::Identity(token)) if token == "t"));
        assert!(config.secret("broken.example", "x").await.is_err());
        let former = r#"{"reg.example":{"username":"u","password":"p","email":"e"}}"#;
        assert_eq!(basic_of("reg.example", "x", former).await, basic("u:p"));
    }

    #[tokio::test]
    async fn the_closest_entry_is_meant() {
        let text = r#"{"auths":{"reg.example":{"username":"all","password":"p"},"*.example":{"username":"any","password":"p"},
            "reg.example/team":{"username":"team","password":"p"}}}"#;
        assert_eq!(basic_of("reg.example", "team/app", text).await, basic("team:p"));
        assert_eq!(basic_of("reg.example", "other", text).await, basic("all:p"));
        assert_eq!(basic_of("new.example", "other", text).await, basic("any:p"));
    }

    #[tokio::test]
    async fn a_directory_of_mounted_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let write = |path: &str, registry: &str, user: &str| {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!(r#"{{"auths":{{"{registry}":{{"username":"{user}","password":"p"}}}}}}"#))
                .unwrap();
        };
        write("a/.dockerconfigjson", "one.example", "a");
        write("b/.dockerconfigjson", "two.example", "b");
        write("..2026_data/x.json", "three.example", "old");
        write("b/notes.txt", "three.example", "not read");
        let user = |registry: &'static str| {
            let path = directory.path().to_owned();
            async move { secret(&path, registry, "x").await.unwrap().map(|secret| secret.basic().unwrap()) }
        };
        assert_eq!(user("one.example").await.unwrap().to_str().ok(), basic("a:p").as_deref());
        assert_eq!(user("two.example").await.unwrap().to_str().ok(), basic("b:p").as_deref());
        assert_eq!(user("three.example").await, None);
        let error = secret(Path::new("/nonexistent/secrets"), "x", "x").await.err().unwrap();
        assert!(error.contains("/nonexistent/secrets"), "{error}");
    }

    #[tokio::test]
    async fn names_of_helpers_lead_nowhere_else() {
        for name in ["../x", "a b", "x;y", "/bin/sh"] {
            let text = format!(r#"{{"credHelpers":{{"reg.example":"{name}"}}}}"#);
            let error = parse(&text).unwrap().secret("reg.example", "x").await.err().unwrap();
            assert!(error.contains("no name of a credential helper"), "{error}");
        }
    }

    /// What a helper that is this script gives.
    async fn helped(script: &str) -> Result<Option<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("docker-credential-test");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        Ok(ask_program(&program, "reg.example").await?.map(|secret| match secret {
            Secret::Password { username, password } => format!("{username}:{password}"),
            Secret::Identity(token) => format!("token {token}"),
            Secret::None => String::new(),
        }))
    }

    #[tokio::test]
    async fn helpers_are_asked_and_bounded() {
        let says = r#"[ "$1" = get ] && read server; echo "{\"ServerURL\":\"$server\",\"Username\":\"u\",\"Secret\":\"$server\"}""#;
        assert_eq!(helped(says).await.unwrap().as_deref(), Some("u:reg.example"));
        let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(helped(token).await.unwrap().as_deref(), Some("token t"));
        let unknown = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(helped(unknown).await.unwrap(), None);
        for (script, hint) in [
            ("echo hunter2; exit 1", "failed"),
            ("echo hunter2", "not an answer"),
            ("exec head -c 2000000 /dev/zero", "more than"),
        ] {
            let error = helped(script).await.unwrap_err();
            assert!(error.contains(hint) && !error.contains("hunter2"), "{script}: {error}");
        }
        let missing = ask_program(Path::new("/nonexistent/docker-credential-x"), "x").await.err().unwrap();
        assert!(missing.contains("cannot be run"), "{missing}");
    }

    #[test]
    fn errors_show_no_secret() {
        let error = parse(r#"{"auths": "hunter2"}"#).err().unwrap();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
