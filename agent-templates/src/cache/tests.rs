//! The cache on a place whose answers the test decides and whose clock it turns.

use std::sync::atomic::{AtomicUsize, Ordering};

use agent_core::async_trait;
use tokio::sync::Semaphore;
use tokio::time::advance;

use super::*;
use crate::place::LARGEST;

/// A place with one template, whose tag is its text.
struct Board {
    answer: Mutex<Result<Vec<u8>>>,
    asked: AtomicUsize,
    sent: AtomicUsize,
    /// Each answer takes one permit.
    open: Semaphore,
}

#[async_trait]
impl Place for Arc<Board> {
    async fn fetch(&self, _: &str, _: TemplateOrigin, known: Option<&str>) -> Result<Fetched> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.open.acquire().await.expect("never closed").forget();
        let bytes = self.answer.lock().expect("unpoisoned").clone()?;
        let tag = String::from_utf8_lossy(&bytes).into_owned();
        if known == Some(tag.as_str()) {
            return Ok(Fetched::NotModified);
        }
        self.sent.fetch_add(1, Ordering::SeqCst);
        Ok(Fetched::Found {
            bytes,
            tag: Some(tag),
        })
    }
}

fn board(permits: usize) -> (Arc<Board>, Cached<Arc<Board>>) {
    let board = Arc::new(Board {
        answer: Mutex::new(Ok(b"kind: Job".to_vec())),
        asked: AtomicUsize::new(0),
        sent: AtomicUsize::new(0),
        open: Semaphore::new(permits),
    });
    let cached = Cached::new(board.clone(), &TemplateSettings::default());
    (board, cached)
}

impl Board {
    fn set(&self, answer: Result<Vec<u8>>) {
        *self.answer.lock().expect("unpoisoned") = answer;
    }

    fn counts(&self) -> (usize, usize) {
        let count = |n: &AtomicUsize| n.load(Ordering::SeqCst);
        (count(&self.asked), count(&self.sent))
    }
}

async fn load(cached: &Cached<Arc<Board>>) -> Result<Arc<Template>> {
    cached.load("board:x", TemplateOrigin::Agent).await
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_template_is_the_same_and_is_asked_about_once_a_second() {
    let (board, cached) = board(1000);
    let first = load(&cached).await.expect("there");
    for _ in 0..100 {
        advance(Duration::from_millis(100)).await;
        let again = load(&cached).await.expect("there");
        assert!(Arc::ptr_eq(&first, &again));
    }
    assert_eq!(board.counts(), (11, 1));
}

#[tokio::test(start_paused = true)]
async fn a_changed_template_is_seen_after_a_second() {
    let (board, cached) = board(1000);
    let first = load(&cached).await.expect("there");
    board.set(Ok(b"kind: Pod".to_vec()));
    assert!(Arc::ptr_eq(&first, &load(&cached).await.expect("there")));
    advance(Duration::from_secs(1)).await;
    assert_eq!(load(&cached).await.expect("there").bytes, b"kind: Pod");
}

#[tokio::test(start_paused = true)]
async fn those_who_ask_at_once_share_one_answer_even_when_the_first_gives_up() {
    let (board, cached) = board(0);
    let cached = Arc::new(cached);
    let ask = || {
        let cached = cached.clone();
        tokio::spawn(async move { load(&cached).await })
    };
    let first = ask();
    tokio::task::yield_now().await;
    let others: Vec<_> = (0..50).map(|_| ask()).collect();
    tokio::task::yield_now().await;
    first.abort();
    assert!(first.await.expect_err("aborted").is_cancelled());
    board.open.add_permits(1);
    for other in others {
        let found = other.await.expect("no panic").expect("there");
        assert_eq!(found.bytes, b"kind: Job");
    }
    assert_eq!(board.counts(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_question_that_nobody_waits_for_any_more_is_asked_anew() {
    let (board, cached) = board(0);
    let early = timeout(Duration::from_secs(1), load(&cached)).await;
    assert!(early.is_err());
    board.open.add_permits(1);
    assert!(load(&cached).await.is_ok());
    assert_eq!(board.counts(), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_copy_serves_while_the_place_is_down_but_not_for_ever() {
    let (board, cached) = board(1000);
    let first = load(&cached).await.expect("there");
    board.set(Err(Error::transient("down")));
    for _ in 0..300 {
        advance(Duration::from_secs(1)).await;
        let again = load(&cached).await.expect("a copy");
        assert!(Arc::ptr_eq(&first, &again));
    }
    assert_eq!(
        board.counts(),
        (32, 1),
        "a place that is down is left alone"
    );
    advance(Duration::from_secs(1)).await;
    let error = load(&cached).await.expect_err("too old");
    assert_eq!(error, Error::transient("down"));
    board.set(Ok(b"kind: Job".to_vec()));
    assert!(Arc::ptr_eq(&first, &load(&cached).await.expect("back")));
}

#[tokio::test(start_paused = true)]
async fn what_is_denied_or_deleted_is_an_error_at_once_and_forgotten() {
    let (board, cached) = board(1000);
    load(&cached).await.expect("there");
    board.set(Err(Error::permanent("denied")));
    advance(Duration::from_secs(1)).await;
    let error = load(&cached).await.expect_err("denied");
    assert_eq!(error, Error::permanent("denied"));
    board.set(Err(Error::transient("down")));
    let error = load(&cached).await.expect_err("no copy");
    assert_eq!(error, Error::transient("down"));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_does_not_answer_in_time_is_a_passing_failure() {
    let (_, cached) = board(0);
    let error = load(&cached).await.expect_err("too slow");
    assert!(error.is_transient());
    assert!(error.to_string().contains("board:x"), "{error}");
    assert!(error.to_string().contains("15s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_text_or_too_large_is_refused() {
    let (board, cached) = board(1000);
    board.set(Ok(b"kind: J\xf6b".to_vec()));
    let error = load(&cached).await.expect_err("Latin-1");
    assert!(error.to_string().contains("byte 7"), "{error}");
    board.set(Ok(vec![b' '; LARGEST + 1]));
    let error = load(&cached).await.expect_err("too large");
    assert!(error.to_string().contains("1048577 bytes"), "{error}");
    assert!(!error.is_transient());
}

#[tokio::test(start_paused = true)]
async fn a_flow_is_not_served_what_the_agent_read() {
    let (board, cached) = board(1000);
    load(&cached).await.expect("there");
    let flow = cached.load("board:x", TemplateOrigin::Flow).await;
    flow.expect("there");
    assert_eq!(board.counts(), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn only_so_many_templates_are_held_and_those_in_use_stay() {
    let (board, cached) = board(1_000_000);
    let at = |n: usize| {
        let cached = &cached;
        async move {
            let location = format!("board:{n}");
            let found = cached.load(&location, TemplateOrigin::Flow).await;
            found.expect("there")
        }
    };
    let first = at(0).await;
    for n in 1..=MOST_COPIES {
        advance(Duration::from_millis(1)).await;
        at(n).await;
        assert!(Arc::ptr_eq(&first, &at(0).await));
    }
    assert_eq!(cached.inner.memory().copies.len(), MOST_COPIES);
    board.set(Ok(vec![b' '; LARGEST]));
    advance(Duration::from_secs(1)).await;
    for n in 0..40 {
        at(n).await;
    }
    let memory = cached.inner.memory();
    let held: usize = memory.copies.values().map(|c| c.template.bytes.len()).sum();
    assert!(held <= MOST_BYTES && held > MOST_BYTES / 2, "{held}");
}

#[tokio::test]
async fn settings_without_bounds_do_no_harm() {
    let (board, _) = board(1000);
    let settings = TemplateSettings {
        fresh_for: Duration::MAX,
        stale_ok: Duration::MAX,
        timeout: Duration::MAX,
        ..TemplateSettings::default()
    };
    let cached = Cached::new(board, &settings);
    let first = load(&cached).await.expect("there");
    assert!(Arc::ptr_eq(&first, &load(&cached).await.expect("there")));
}
