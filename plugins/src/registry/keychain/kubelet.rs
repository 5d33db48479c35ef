//! kubelet's credential provider plug-ins: the same configuration and the same programs.
//!
//! Sources: Kubernetes, "Configure a kubelet image credential provider"; `kubelet.config.k8s.io/v1` `CredentialProviderConfig`;
//! `credentialprovider.kubelet.k8s.io/v1` `CredentialProviderRequest` and `CredentialProviderResponse`. Not supported:
//! `tokenAttributes`, which need a pod's service account.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use super::super::credential::Secret;
use super::pattern::Pattern;
use super::program;
use super::read_bounded;
use crate::limits::{MAX_CREDENTIAL_AGE, MAX_CREDENTIAL_PROVIDERS, MAX_KEPT_CREDENTIALS};

/// What kubelet's `--image-credential-provider-config` names.
#[derive(Deserialize)]
struct ProviderConfig {
    kind: String,
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    match_images: Vec<String>,
    #[serde(default)]
    default_cache_duration: Option<String>,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'a str,
    kind: &'a str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    kind: String,
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
struct Auth {
    username: String,
    password: String,
}

/// For what an answer stands: provider, and image, registry or nothing.
type Key = (String, String);

struct Kept {
    auths: Vec<(Pattern, String, String)>,
    until: Instant,
}

/// The answers of the programs, for as long as these say.
pub(super) struct Answers(Mutex<LruCache<Key, Kept>>);

impl Answers {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(MAX_KEPT_CREDENTIALS).unwrap_or(NonZeroUsize::MIN))))
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, LruCache<Key, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said about a repository was refused: it is asked for again. Whether anything was said.
    pub(super) fn forget(&self, registry: &str, repository: &str) -> bool {
        let mut kept = self.kept();
        let is_meant = |answer: &Kept| answer.auths.iter().any(|(pattern, ..)| pattern.matches(registry, repository));
        let stale: Vec<Key> = kept.iter().filter(|(_, answer)| is_meant(answer)).map(|(key, _)| key.clone()).collect();
        stale.into_iter().filter(|key| kept.pop(key).is_some()).count() > 0
    }

    /// The secret that the configured programs have for a repository.
    pub(super) async fn secret(
        &self,
        config: &Path,
        directory: &Path,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Secret>, String> {
        for provider in providers(config)? {
            if !provider.match_images.iter().any(|image| Pattern::parse(image).matches(registry, repository)) {
                continue;
            }
            if let Some(secret) = self.kept_of(&provider.name, registry, repository) {
                return Ok(Some(secret));
            }
            let (key, kept) = ask(&provider, directory, registry, repository).await?;
            let secret = pick(&kept, registry, repository);
            self.kept().put(key, kept);
            if secret.is_some() {
                return Ok(secret);
            }
        }
        Ok(None)
    }

    fn kept_of(&self, provider: &str, registry: &str, repository: &str) -> Option<Secret> {
        let keys = [format!("{registry}/{repository}"), registry.to_owned(), String::new()];
        let mut kept = self.kept();
        keys.into_iter().find_map(|scope| {
            let answer = kept.get(&(provider.to_owned(), scope)).filter(|answer| answer.until > Instant::now())?;
            pick(answer, registry, repository)
        })
    }
}

fn pick(answer: &Kept, registry: &str, repository: &str) -> Option<Secret> {
    let matching = answer.auths.iter().filter(|(pattern, ..)| pattern.matches(registry, repository));
    let (_, username, password) = matching.max_by_key(|(pattern, ..)| pattern.rank())?;
    Some(Secret::Password { username: username.clone(), password: password.clone() })
}

/// The configuration, YAML or JSON, read at each use.
fn providers(config: &Path) -> Result<Vec<Provider>, String> {
    let text = read_bounded(config)?;
    // The rest of the message quotes the file.
    let parsed: Result<ProviderConfig, _> = serde_saphyr::from_str(&text);
    let parsed = parsed.map_err(|error| {
        let message = error.to_string();
        format!("{}: {}", config.display(), message.lines().next().unwrap_or_default())
    })?;
    if parsed.kind != "CredentialProviderConfig" {
        return Err(format!("{}: its kind is {:?}, not CredentialProviderConfig", config.display(), parsed.kind));
    }
    Ok(parsed.providers.into_iter().take(MAX_CREDENTIAL_PROVIDERS).collect())
}

async fn ask(provider: &Provider, directory: &Path, registry: &str, repository: &str) -> Result<(Key, Kept), String> {
    let Provider { name, api_version, args, env, .. } = provider;
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(format!("{name:?} is no name of a credential provider"));
    }
    let program = directory.join(name);
    let image = format!("{registry}/{repository}");
    let request = Request { api_version, kind: "CredentialProviderRequest", image: &image };
    let request = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
    let environment: Vec<_> = env.iter().map(|variable| (variable.name.clone(), variable.value.clone())).collect();
    let said = program::run(&program, args, &environment, &request).await?;
    let wrong = |what: String| format!("{}: {what}", program.display());
    if !said.succeeded {
        return Err(wrong("failed".to_owned()));
    }
    let response: Response = serde_json::from_slice(&said.output)
        .map_err(|error| wrong(format!("not a CredentialProviderResponse (column {})", error.column())))?;
    if response.kind != "CredentialProviderResponse" {
        return Err(wrong(format!("answers with a {:?}", response.kind)));
    }
    let scope = match response.cache_key_type.as_str() {
        "Image" => image,
        "Registry" => registry.to_owned(),
        "Global" => String::new(),
        other => return Err(wrong(format!("its cacheKeyType is {other:?}"))),
    };
    let age = response.cache_duration.as_deref().or(provider.default_cache_duration.as_deref());
    let age = age.and_then(duration).unwrap_or_default().min(MAX_CREDENTIAL_AGE);
    let auths = response.auth.unwrap_or_default().into_iter();
    let auths = auths.map(|(key, auth)| (Pattern::parse(&key), auth.username, auth.password)).collect();
    Ok(((name.clone(), scope), Kept { auths, until: Instant::now() + age }))
}

/// A duration as Go writes it: `6h0m0s`, `1.5h`, `300ms`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |length| end + length);
        let seconds = match &rest[end..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, seconds) in [
            ("6h0m0s", Some(21600.0)),
            ("1.5h", Some(5400.0)),
            ("300ms", Some(0.3)),
            ("0", Some(0.0)),
            ("12h", Some(43200.0)),
        ] {
            assert_eq!(duration(text).map(|found| found.as_secs_f64()), seconds, "{text}");
        }
        for text in ["", "5", "h", "-1h", "1d", "1e400h", "99999999999999999999h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
