use super::super::tokenizer::fixture;
use super::*;

fn spec(samples: Option<usize>, seq_len: Option<usize>, bos: Bos) -> SampleSpec {
    SampleSpec { samples, seq_len, seed: 0, bos }
}

fn rows(count: u32, width: u32) -> Corpus {
    Corpus::Ids((0..count).map(|row| (0..width).map(|i| row * 100 + i).collect()).collect())
}

fn documents(texts: &[&str]) -> Corpus {
    Corpus::Documents(texts.iter().map(|text| (*text).to_owned()).collect())
}

#[test]
fn the_hash_covers_lengths_and_ids() {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(Windows::new(vec![vec![1, 258], vec![3]]).hash, hasher.finalize().to_hex().as_str());
    assert_ne!(Windows::new(vec![vec![1, 258], vec![3]]).hash, Windows::new(vec![vec![1], vec![258, 3]]).hash);
    assert_eq!(Windows::new(vec![vec![1, 258], vec![3]]).tokens(), 3);
}

#[test]
fn ids_outside_the_vocabulary_are_named() {
    let windows = Windows::new(vec![vec![1, 2], vec![3, 9]]);
    assert!(windows.check_vocab(10).is_ok());
    assert_eq!(
        windows.check_vocab(9).unwrap_err().to_string(),
        "token id 9 at position 1 of window 1 is outside the model's vocabulary of 9"
    );
}

#[test]
fn stored_rows_are_taken_in_order() {
    let corpus = rows(4, 8);
    let Corpus::Ids(all) = &corpus else { unreachable!() };
    assert_eq!(&sample_windows(&corpus, None, &spec(None, None, Bos::None)).unwrap().ids, all);
    assert_eq!(sample_windows(&corpus, None, &spec(Some(2), Some(8), Bos::None)).unwrap().ids, all[..2]);
}

#[test]
fn stored_rows_refuse_what_they_cannot_give() {
    let error =
        |samples, seq_len, bos| sample_windows(&rows(4, 8), Some(&fixture()), &spec(samples, seq_len, bos)).unwrap_err().to_string();
    assert_eq!(error(Some(5), None, Bos::None), "5 samples were asked for, but the data has 4 rows of ids");
    assert_eq!(error(None, Some(16), Bos::None), "`seq-len` is 16, but row 0 of the stored ids has 8 tokens");
    assert_eq!(error(Some(0), None, Bos::None), "`samples` is 0");
    assert_eq!(error(None, None, Bos::Document), "`bos = \"document\"` needs text: stored token ids have no documents");
    assert_eq!(error(Some(2), None, Bos::Sequence), "`bos = \"sequence\"`, but row 0 of the stored ids does not start with the BOS token");
    // Rows that bring the token are taken as they are.
    let with_bos = Corpus::Ids(vec![vec![5, 1], vec![5, 2]]);
    assert_eq!(sample_windows(&with_bos, Some(&fixture()), &spec(None, None, Bos::Sequence)).unwrap().ids, [[5, 1], [5, 2]]);
}

#[test]
fn a_single_row_is_a_stream() {
    let stream: Vec<u32> = (0..3000).collect();
    let windows = sample_windows(&Corpus::Ids(vec![stream.clone()]), None, &spec(None, None, Bos::None)).unwrap();
    assert_eq!((windows.ids.len(), windows.tokens()), (128, 128 * 2048));
    // Consecutive ids, so a window is a piece of the stream exactly if it counts up.
    assert!(windows.ids.iter().all(|w| w.windows(2).all(|pair| pair[1] == pair[0] + 1)));
    let starts: std::collections::BTreeSet<u32> = windows.ids.iter().map(|w| w[0]).collect();
    assert!(starts.len() > 100, "starts should differ: {starts:?}");
}

#[test]
fn random_windows_depend_on_seed_and_index_only() {
    let corpus = Corpus::Ids(vec![(0..1000).collect()]);
    let draw = |samples, seed| {
        let spec = SampleSpec { samples: Some(samples), seq_len: Some(10), seed, bos: Bos::None };
        sample_windows(&corpus, None, &spec).unwrap().ids
    };
    assert_eq!(draw(4, 1), draw(9, 1)[..4]);
    assert_ne!(draw(4, 1), draw(4, 2));
}

#[test]
fn starts_reach_both_ends() {
    let corpus = Corpus::Ids(vec![vec![0, 1, 2, 3]]);
    let windows = sample_windows(&corpus, None, &spec(Some(64), Some(3), Bos::None)).unwrap();
    assert!(windows.ids.contains(&vec![0, 1, 2]) && windows.ids.contains(&vec![1, 2, 3]));
}

#[test]
fn too_little_data_is_an_error_with_the_numbers() {
    let corpus = Corpus::Ids(vec![vec![1; 9]]);
    let error = sample_windows(&corpus, None, &spec(None, Some(10), Bos::None)).unwrap_err();
    assert_eq!(error.to_string(), "the data has 9 tokens, but one window of 10 needs 10");
    assert_eq!(error.hint_text(), Some("give more text, or lower `seq-len`"));
    assert!(sample_windows(&corpus, Some(&fixture()), &spec(Some(1), Some(10), Bos::Sequence)).is_ok());
}

#[test]
fn text_is_one_stream_with_blank_lines_between_documents() {
    let tokenizer = fixture();
    let corpus = documents(&["a b", "c"]);
    assert_eq!(token_stream(&corpus, Some(&tokenizer), Bos::None).unwrap(), tokenizer.encode("a b\n\nc", false).unwrap());
    assert_eq!(token_stream(&corpus, Some(&tokenizer), Bos::Sequence).unwrap(), tokenizer.encode("a b\n\nc", false).unwrap());
    let bos = tokenizer.bos().unwrap();
    let ids = |text: &str| tokenizer.encode(text, false).unwrap();
    let expected = [vec![bos], ids("a b"), vec![bos], ids("c")].concat();
    assert_eq!(token_stream(&corpus, Some(&tokenizer), Bos::Document).unwrap(), expected);
    // A rendered chat brings its own.
    assert_eq!(
        token_stream(&documents(&["<s> a", "c"]), Some(&tokenizer), Bos::Document).unwrap(),
        [ids("<s> a"), vec![bos], ids("c")].concat()
    );
}

#[test]
fn bos_of_a_sequence_is_one_of_its_tokens() {
    let tokenizer = fixture();
    let windows = sample_windows(&documents(&["a b c a b c"]), Some(&tokenizer), &spec(Some(5), Some(4), Bos::Sequence)).unwrap();
    let bos = tokenizer.bos().unwrap();
    assert!(windows.ids.iter().all(|w| w.len() == 4 && w[0] == bos && !w[1..].contains(&bos)), "{:?}", windows.ids);
}

#[test]
fn text_without_tokenizer_or_bos_is_refused() {
    let corpus = documents(&["a b c"]);
    let error = token_stream(&corpus, None, Bos::None).unwrap_err().to_string();
    assert_eq!(error, "text needs a tokenizer, and the model has none");
    let error = token_stream(&corpus, None, Bos::Sequence).unwrap_err().to_string();
    assert_eq!(error, "`bos = \"sequence\"`, but the model has no tokenizer");
    let without = super::super::tokenizer::fixture_without_bos();
    let error = token_stream(&corpus, Some(&without), Bos::Document).unwrap_err().to_string();
    assert_eq!(error, "`bos = \"document\"`, but the tokenizer has no BOS token");
}

#[test]
fn evaluation_windows_are_consecutive_and_drop_the_tail() {
    let stream: Vec<u32> = (10..21).collect();
    let cut = |max, bos| evaluation_windows(&stream, 4, max, bos).unwrap().ids;
    assert_eq!(cut(None, None), [vec![10, 11, 12, 13], vec![14, 15, 16, 17]]);
    assert_eq!(cut(Some(1), None), [vec![10, 11, 12, 13]]);
    assert_eq!(cut(None, Some(7)), [vec![7, 10, 11, 12], vec![7, 13, 14, 15], vec![7, 16, 17, 18]]);
}

#[test]
fn evaluation_refuses_a_stream_that_fills_no_window() {
    let error = |seq_len, bos| evaluation_windows(&[1, 2, 3], seq_len, None, bos).unwrap_err().to_string();
    assert_eq!(error(4, None), "the data has 3 tokens, but one window of 4 needs 4");
    assert_eq!(error(5, Some(0)), "the data has 3 tokens, but one window of 5 needs 4");
    assert_eq!(error(0, None), "`seq-len` is 0, which leaves no room for text");
    assert_eq!(error(1, Some(0)), "`seq-len` is 1, which leaves no room for text");
}

#[test]
fn bos_is_spelled_in_kebab_case() {
    let spelled: Vec<Bos> = serde_json::from_str(r#"["none", "document", "sequence"]"#).unwrap();
    assert_eq!(spelled, [Bos::None, Bos::Document, Bos::Sequence]);
}
