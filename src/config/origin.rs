//! What nodes may do at origins: checked here, and handed to the tracker.

use lapwing_discovery::lease::sites::{LeasePolicy, SitePolicy};

use super::{ConfigError, Origin};

const MAX_COPIES: u32 = 64;
const MAX_STREAMS: u32 = 256;
const MAX_LABEL_BYTES: usize = 63;

/// Refuses what cannot work.
pub(super) fn check(origin: &Origin) -> Result<(), ConfigError> {
    check_one("origin", origin.copies, origin.streams, &origin.zone)?;
    for (name, site) in &origin.sites {
        let key = format!("origin.sites.{name:?}");
        if name.is_empty() || name.contains(['/', '@', ' ', '?', '#']) {
            let reason = "the name is a host or host:port, as in image references".into();
            return Err(ConfigError::Invalid { key, reason });
        }
        let (copies, streams) = (site.copies.unwrap_or(1), site.streams.unwrap_or(0));
        check_one(&key, copies, streams, site.zone.as_deref().unwrap_or_default())?;
    }
    Ok(())
}

fn check_one(prefix: &str, copies: u32, streams: u32, zone: &str) -> Result<(), ConfigError> {
    let invalid = |key: &str, reason: String| Err(ConfigError::Invalid { key: format!("{prefix}.{key}"), reason });
    if !(1..=MAX_COPIES).contains(&copies) {
        return invalid("copies", format!("{copies} is not between 1 and {MAX_COPIES}"));
    }
    if streams > MAX_STREAMS {
        return invalid("streams", format!("{streams} is more than {MAX_STREAMS}; 0 leaves it to the tracker"));
    }
    if zone.len() > MAX_LABEL_BYTES || !zone.bytes().all(|byte| byte.is_ascii_graphic()) {
        return invalid("zone", format!("{zone:?}: expected a label as in tracker.zone, without blanks"));
    }
    Ok(())
}

impl Origin {
    /// For the tracker.
    pub(crate) fn policy(&self) -> LeasePolicy {
        let policy = |copies: u32, streams: u32, zone: &str| SitePolicy {
            copies,
            streams: (streams > 0).then_some(streams),
            zone: zone.to_owned(),
        };
        let sites = self.sites.iter().map(|(name, site)| {
            let copies = site.copies.unwrap_or(self.copies);
            let streams = site.streams.unwrap_or(self.streams);
            let zone = site.zone.as_deref().unwrap_or(&self.zone);
            (name.to_ascii_lowercase(), policy(copies, streams, zone))
        });
        LeasePolicy { usual: policy(self.copies, self.streams, &self.zone), sites: sites.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn what_a_site_does_not_set_is_as_usual() {
        let text = "[origin]\ncopies = 2\nzone = \"a\"\n[origin.sites.\"Reg.example:5000\"]\nstreams = 3";
        let policy = Config::parse(text, "f").unwrap().validated().unwrap().origin.policy();
        assert_eq!((policy.usual.copies, policy.usual.streams, policy.usual.zone.as_str()), (2, None, "a"));
        let site = &policy.sites["reg.example:5000"];
        assert_eq!((site.copies, site.streams, site.zone.as_str()), (2, Some(3), "a"));
    }
}
