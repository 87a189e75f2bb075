use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;

fn config(json: &str) -> RateLimiterConfig {
    serde_json::from_str(json).unwrap()
}

const BOTH: &str = r#"{"bandwidth": {"size": 1000, "refill_time": 1000},
    "ops": {"size": 2, "refill_time": 10000}}"#;

#[test]
fn request_needs_both_tokens() {
    let clock = ManualClock::new();
    let mut limiter = RateLimiter::new(Some(config(BOTH)), clock.clone()).unwrap();
    assert!(limiter.consume(800));
    // Too few bytes: the operation is not taken either.
    assert!(!limiter.consume(800));
    assert!(limiter.is_throttled() && limiter.is_armed());
    clock.advance(Duration::from_millis(600));
    assert!(limiter.consume(800));
    assert!(!limiter.consume(0));
    clock.advance(Duration::from_millis(4399));
    assert!(!limiter.consume(0));
    clock.advance(Duration::from_millis(1));
    assert!(limiter.consume(0));
}

#[test]
fn absent_limiter_never_throttles() {
    let mut limiter = RateLimiter::new(None, ManualClock::new()).unwrap();
    for _ in 0..1000 {
        assert!(limiter.consume(u64::MAX));
    }
    assert!(!limiter.is_armed());
}

#[test]
fn update_replaces_present_buckets_only() {
    let clock = ManualClock::new();
    let mut limiter = RateLimiter::new(Some(config(BOTH)), clock).unwrap();
    assert!(limiter.consume(1000) && !limiter.consume(1000));
    limiter.update(config(r#"{"bandwidth": {"size": 0, "refill_time": 0}}"#));
    assert!(!limiter.is_throttled() && !limiter.is_armed());
    assert!(limiter.consume(1000));
    assert!(!limiter.consume(1000));
    limiter.update(config(r#"{"ops": {"size": 1, "refill_time": 1000}}"#));
    assert!(limiter.consume(1000) && !limiter.consume(0));
}

#[test]
fn disarmed_limiter_keeps_its_tokens() {
    let mut limiter = RateLimiter::new(Some(config(BOTH)), ManualClock::new()).unwrap();
    assert!(limiter.consume(1000) && !limiter.consume(1));
    limiter.disarm();
    assert!(!limiter.is_armed());
    assert!(!limiter.consume(1));
}

#[test]
fn timer_wakes_by_edge_without_reading() {
    let limit = r#"{"ops": {"size": 1, "refill_time": 2}}"#;
    let mut limiter = RateLimiter::new(Some(config(limit)), MonotonicClock).unwrap();
    let epoll = Epoll::new().unwrap();
    let events = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
    epoll
        .ctl(ControlOperation::Add, limiter.timer(), events)
        .unwrap();
    assert!(limiter.consume(0));
    for _ in 0..3 {
        assert!(!limiter.consume(0));
        let woken = epoll.wait(10_000, &mut [EpollEvent::default()]).unwrap();
        assert_eq!(woken, 1);
        assert!(limiter.consume(0));
    }
}
