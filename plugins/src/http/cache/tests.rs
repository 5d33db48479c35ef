use proptest::prelude::*;

use super::*;

type Headers<'a> = &'a [(&'a str, &'a str)];

/// Seconds after an arbitrary moment.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn date(seconds: u64) -> String {
    httpdate::fmt_http_date(at(seconds))
}

fn map(headers: &[(&str, &str)]) -> HeaderMap {
    headers.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

/// What was answered at second 0 without delay.
fn known(headers: &[(&str, &str)]) -> Metadata {
    let mut all = map(&[("etag", "\"v1\"")]);
    all.extend(map(headers));
    Metadata::admit(&HeaderMap::new(), false, &all, Some(100), (at(0), at(0))).unwrap()
}

#[test]
fn what_is_shared() {
    type Case<'a> = (Headers<'a>, bool, Headers<'a>, Option<u64>, Result<(), Obstacle>);
    let tag = ("etag", "\"v1\"");
    let old = date(0);
    let cases: &[Case<'_>] = &[
        (&[], false, &[tag], Some(1), Ok(())),
        (&[], false, &[tag, ("vary", "Accept-Encoding")], Some(1), Ok(())),
        (&[], false, &[tag, ("vary", "Origin, Access-Control-Request-Method,accept-encoding")], Some(1), Ok(())),
        (&[], false, &[tag, ("cache-control", "no-cache")], Some(1), Ok(())),
        (&[], true, &[tag, ("cache-control", "max-age=60, public")], Some(1), Ok(())),
        (&[], true, &[tag, ("cache-control", "max-age=60")], Some(1), Err(Obstacle::Credentials)),
        (&[], false, &[tag, ("cache-control", "no-store")], Some(1), Err(Obstacle::NoStore)),
        (
            &[],
            false,
            &[tag, ("cache-control", "max-age=1"), ("cache-control", "NO-STORE")],
            Some(1),
            Err(Obstacle::NoStore),
        ),
        (&[("cache-control", "no-store")], false, &[tag], Some(1), Err(Obstacle::NoStore)),
        (&[], false, &[tag, ("cache-control", "private, max-age=9")], Some(1), Err(Obstacle::Private)),
        (&[], false, &[tag, ("cache-control", "private=\"set-cookie, x\"")], Some(1), Err(Obstacle::Private)),
        (&[], true, &[tag, ("cache-control", "public, private")], Some(1), Err(Obstacle::Private)),
        (&[], false, &[tag, ("vary", "Accept-Encoding, Cookie")], Some(1), Err(Obstacle::Varies)),
        (&[], false, &[tag, ("vary", "Origin, Cookie")], Some(1), Err(Obstacle::Varies)),
        (&[], false, &[tag, ("vary", "*")], Some(1), Err(Obstacle::Varies)),
        (&[], false, &[tag, ("content-encoding", "gzip")], Some(1), Err(Obstacle::Encoded)),
        (&[], false, &[tag], None, Err(Obstacle::NoLength)),
        (&[], false, &[], Some(1), Err(Obstacle::NoValidator)),
        (&[], false, &[("etag", "W/\"v1\"")], Some(1), Err(Obstacle::NoValidator)),
        (&[], false, &[("etag", "W/\"v1\""), ("last-modified", &old)], Some(1), Err(Obstacle::NoValidator)),
        (&[], false, &[("etag", "v1")], Some(1), Err(Obstacle::NoValidator)),
        (&[], false, &[("etag", "\"")], Some(1), Err(Obstacle::NoValidator)),
        (&[], false, &[("etag", "\"a\"b\"")], Some(1), Err(Obstacle::NoValidator)),
        (&[], false, &[("last-modified", &old)], Some(1), Ok(())),
    ];
    for (request, personal, answer, length, expected) in cases {
        let admitted = Metadata::admit(&map(request), *personal, &map(answer), *length, (at(60), at(60))).map(|_| ());
        assert_eq!(admitted, *expected, "{request:?} {personal} {answer:?}");
    }
    let long = "x".repeat(MAX_KEPT_HEADER + 1);
    let long =
        Metadata::admit(&HeaderMap::new(), false, &map(&[tag, ("content-type", &long)]), Some(1), (at(0), at(0)));
    assert_eq!(long, Err(Obstacle::TooLong));
}

#[test]
fn a_date_tells_versions_apart_only_when_it_is_old_enough() {
    let (modified, cases) = (date(0), [(0, false), (59, false), (60, true), (3600, true)]);
    for (now, strong) in cases {
        let by_date = Validator::of(&map(&[("last-modified", &modified), ("date", &date(now))]), at(1_000_000));
        assert_eq!(by_date.is_some(), strong, "{now}");
        assert_eq!(Validator::of(&map(&[("last-modified", &modified)]), at(now)).is_some(), strong, "{now}");
    }
    assert_eq!(Validator::of(&map(&[("last-modified", "yesterday")]), at(0)), None);
    let dated = Validator::LastModified(modified.clone());
    assert!(dated.is_in(&map(&[("last-modified", &modified)])));
    assert!(!dated.is_in(&map(&[("last-modified", &modified), ("etag", "\"new\"")])));
    assert!(!dated.is_in(&map(&[("last-modified", &date(1))])));
}

#[test]
fn freshness() {
    let (later, now, past) = (date(50), date(0), date(0));
    // Headers, and until which second it is fresh.
    let cases: &[(Headers<'_>, u64)] = &[
        (&[("cache-control", "max-age=50")], 50),
        (&[("cache-control", "Max-Age=\"50\"")], 50),
        (&[("cache-control", "max-age=50, s-maxage=20")], 20),
        (&[("cache-control", "max-age=20, s-maxage=50")], 50),
        (&[("cache-control", "max-age=50, max-age=20")], 20),
        (&[("cache-control", "max-age=50"), ("age", "20")], 30),
        (&[("cache-control", "max-age=50"), ("age", "soon")], 0),
        (&[("cache-control", "max-age=50"), ("date", &now), ("expires", "0")], 50),
        (&[("cache-control", "max-age=-5")], 0),
        (&[("cache-control", "max-age=soon")], 0),
        (&[("cache-control", "max-age")], 0),
        (&[("cache-control", "max-age=50, no-cache")], 0),
        (&[("cache-control", "max-age=50, no-cache=\"set-cookie\"")], 0),
        (&[("cache-control", "max-age=50, must-revalidate")], 50),
        (&[("cache-control", "ext=\"max-age=9, x\", max-age=50")], 50),
        (&[("expires", &later), ("date", &now)], 50),
        (&[("expires", &later)], 50),
        (&[("expires", "0")], 0),
        (&[("expires", &past)], 0),
        (&[("expires", &later), ("expires", &later)], 0),
        (&[], 0),
        (&[("last-modified", &past)], 0),
        (&[("cache-control", "max-age=99999999999999999999999")], MAX_FRESHNESS.as_secs()),
    ];
    for (headers, until) in cases {
        let known = known(headers);
        assert!(!known.is_fresh(at(*until)), "{headers:?} at {until}");
        if let Some(before) = until.checked_sub(1) {
            assert!(known.is_fresh(at(before)), "{headers:?} at {before}");
        }
        assert!(!known.is_fresh(at(0) - Duration::from_secs(1)), "{headers:?}: the clock was set back");
    }
}

#[test]
fn the_age_counts_the_way_and_the_clocks() {
    let age = |headers: &[(&str, &str)], asked, answered, now| {
        let mut all = map(&[("etag", "\"v1\"")]);
        all.extend(map(headers));
        let known = Metadata::admit(&HeaderMap::new(), false, &all, Some(1), (at(asked), at(answered))).unwrap();
        known.age(at(now)).as_secs()
    };
    let (ten, late) = (date(10), date(500));
    assert_eq!(age(&[], 100, 100, 107), 7);
    assert_eq!(age(&[], 90, 100, 107), 17, "the delay of the answer counts");
    assert_eq!(age(&[("age", "30")], 90, 100, 107), 47);
    assert_eq!(age(&[("date", &ten)], 100, 100, 107), 97, "an old Date counts");
    assert_eq!(age(&[("date", &ten), ("age", "200")], 100, 100, 107), 207, "the higher one");
    assert_eq!(age(&[("date", &late)], 100, 100, 107), 7, "a server's clock that is ahead does not");
}

#[test]
fn what_to_do_with_a_request() {
    let fresh = known(&[("cache-control", "max-age=50")]);
    let cases: &[(Headers<'_>, u64, Decision)] = &[
        (&[], 10, Decision::Use),
        (&[], 50, Decision::Revalidate),
        (&[("cache-control", "no-cache")], 10, Decision::Revalidate),
        (&[("cache-control", "max-age=0")], 0, Decision::Revalidate),
        (&[("cache-control", "max-age=5")], 10, Decision::Revalidate),
        (&[("cache-control", "max-age=20")], 10, Decision::Use),
        (&[("cache-control", "max-stale=100")], 60, Decision::Revalidate),
        (&[("pragma", "no-cache")], 10, Decision::Revalidate),
        (&[("pragma", "no-cache"), ("cache-control", "max-age=30")], 10, Decision::Use),
    ];
    for (request, now, expected) in cases {
        assert_eq!(decide(Some(&fresh), &map(request), at(*now)), *expected, "{request:?} at {now}");
    }
    assert_eq!(decide(None, &HeaderMap::new(), at(0)), Decision::Ask);
}

#[test]
fn what_a_conditional_request_brings() {
    let known = known(&[("cache-control", "max-age=50"), ("age", "40"), ("content-type", "text/plain")]);
    assert_eq!(known.conditions(), map(&[("if-none-match", "\"v1\"")]));
    let ask =
        |status, headers: &[(&str, &str)], length| known.revalidated(status, &map(headers), length, (at(90), at(91)));

    let Revalidated::Current(newer) = ask(304, &[], None) else { panic!("304") };
    assert!(newer.is_fresh(at(92)) && !newer.is_fresh(at(140)));
    assert_eq!(newer.age(at(92)).as_secs(), 2, "the old Age went with the old answer");
    assert_eq!(
        newer.headers(),
        map(&[("cache-control", "max-age=50"), ("etag", "\"v1\""), ("content-type", "text/plain")])
    );
    let Revalidated::Current(newer) = ask(304, &[("cache-control", "max-age=5"), ("etag", "\"v1\"")], None) else {
        panic!("304 with headers")
    };
    assert!(newer.is_fresh(at(92)) && !newer.is_fresh(at(96)));

    let v1 = ("etag", "\"v1\"");
    assert!(matches!(ask(200, &[v1], Some(100)), Revalidated::Current(_)), "conditions were ignored");
    for (status, headers, length) in [
        (200, &[v1][..], Some(101)),
        (200, &[v1], None),
        (200, &[("etag", "\"v2\"")], Some(100)),
        (200, &[("etag", "W/\"v1\"")], Some(100)),
        (200, &[], Some(100)),
        (200, &[v1, ("cache-control", "no-store")], Some(100)),
        (304, &[("etag", "\"v2\"")], None),
        (304, &[("cache-control", "no-store")], None),
        (304, &[("cache-control", "private")], None),
        (304, &[("vary", "cookie")], None),
        (412, &[], None),
    ] {
        assert_eq!(ask(status, headers, length), Revalidated::Changed, "{status} {headers:?} {length:?}");
    }
    for status in [500, 502, 503, 504, 429] {
        assert_eq!(ask(status, &[], None), Revalidated::Failed, "{status}");
    }
    for status in [401, 403, 404, 410, 204, 418] {
        assert_eq!(ask(status, &[], None), Revalidated::Refused, "{status}");
    }
}

#[test]
fn stale_only_where_allowed() {
    let allowed =
        |headers: &[(&str, &str)], now, limit| known(headers).may_be_stale(at(now), Duration::from_secs(limit));
    let age = ("cache-control", "max-age=50");
    assert!(!allowed(&[age], 60, 0), "0 switches it off");
    assert!(allowed(&[age], 60, 10));
    assert!(!allowed(&[age], 61, 10));
    assert!(allowed(&[], 10, 10));
    for forbids in ["must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=50"] {
        assert!(!allowed(&[age, ("cache-control", forbids)], 51, 1000), "{forbids}");
    }
}

#[test]
fn conditions_of_clients() {
    let old = date(0);
    let known = map(&[("etag", "\"v1\""), ("last-modified", &old)]);
    let (same, before, after) = (date(0), date(0).replace("2023", "2022"), date(9));
    let cases: &[(Headers<'_>, bool)] = &[
        (&[], false),
        (&[("if-none-match", "\"v1\"")], true),
        (&[("if-none-match", "W/\"v1\"")], true),
        (&[("if-none-match", "\"v0\", \"v1\"")], true),
        (&[("if-none-match", "*")], true),
        (&[("if-none-match", "\"v2\"")], false),
        (&[("if-none-match", "\"v2\""), ("if-modified-since", &after)], false),
        (&[("if-modified-since", &same)], true),
        (&[("if-modified-since", &after)], true),
        (&[("if-modified-since", &before)], false),
        (&[("if-modified-since", "never")], false),
    ];
    for (request, expected) in cases {
        assert_eq!(client_has(&map(request), &known), *expected, "{request:?}");
    }
    assert!(!client_has(&map(&[("if-none-match", "\"v1\"")]), &HeaderMap::new()));
}

#[test]
fn metadata_survives_being_written() {
    let known = known(&[("cache-control", "max-age=50"), ("age", "3"), ("vary", "accept-encoding")]);
    let text = serde_json::to_string(&known).unwrap();
    assert_eq!(serde_json::from_str::<Metadata>(&text).unwrap(), known);
}

fn any_header() -> impl Strategy<Value = (HeaderName, HeaderValue)> {
    let name = prop::sample::select(vec![
        "cache-control",
        "expires",
        "age",
        "date",
        "etag",
        "last-modified",
        "vary",
        "pragma",
        "content-encoding",
    ]);
    let value = prop_oneof![
        "[ -~]{0,40}",
        "(max-age|s-maxage|no-cache|private|no-store|public)(=\"?[0-9]{0,6}\"?)?(, (no-cache|max-age=[0-9]{1,4}))?",
        "(W/)?\"[a-z]{0,3}\"",
        (0..10_000_u64).prop_map(date),
    ];
    (name, value).prop_filter_map("not a header", |(name, value)| {
        Some((HeaderName::from_static(name), HeaderValue::try_from(value).ok()?))
    })
}

fn any_headers() -> impl Strategy<Value = HeaderMap> {
    prop::collection::vec(any_header(), 0..6).prop_map(|all| {
        let mut map = HeaderMap::new();
        all.into_iter().for_each(|(name, value)| {
            map.append(name, value);
        });
        map
    })
}

proptest! {
    #[test]
    fn whatever_servers_send_is_either_shared_rightly_or_not_at_all(
        request in any_headers(), answer in any_headers(), newer in any_headers(),
        personal: bool, status in prop::sample::select(vec![200_u16, 304, 404, 500]), now in 0..20_000_u64,
    ) {
        let admitted = Metadata::admit(&request, personal, &answer, Some(7), (at(5000), at(5001)));
        let Ok(known) = admitted else { return Ok(()) };
        let directives = Directives::of(&answer);
        prop_assert!(!directives.no_store && !directives.private && (!personal || directives.public));
        let own = known.validator().unwrap();
        prop_assert!(own.is_in(&answer));
        // Use is only ever decided for what is fresh, and fresh things become stale and stay so.
        if decide(Some(&known), &request, at(now)) == Decision::Use {
            prop_assert!(known.is_fresh(at(now)) && !directives.no_cache);
        }
        if now >= 5001 && !known.is_fresh(at(now)) {
            prop_assert!(!known.is_fresh(at(now + 1)));
        }
        prop_assert!(!known.may_be_stale(at(now), Duration::ZERO));
        prop_assert!(known.age(at(now + 1)) >= known.age(at(now)));
        // What counts as current carries the very same validator.
        if let Revalidated::Current(newer) = known.revalidated(status, &newer, Some(7), (at(now), at(now))) {
            prop_assert_eq!(newer.validator().unwrap(), own);
            prop_assert_eq!(newer.length, 7);
        }
    }
}
