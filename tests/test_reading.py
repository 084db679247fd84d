"""Answers in words, each with the reading that a person gave it before any code ran."""

import pytest

from tl_steer._read_choice import read_answer, read_choice

READINGS = {
    0: [
        "(A)", "(A) True", "A", "A. True", "A: because dogs do bark.",
        "Answer: (A) True. Dogs are mammals.", "The answer is A.", "I would choose option A.",
        "(B) is wrong, so it must be (A).", "True", "TRUE!", "“True”, of course.", "This is not false.",
        "The claim is not untrue.", "That's correct.", "There is no doubt that this is true.",
        "True or false? True.", "True. Some people say it is false, but they have never seen one.",
        "If I had to choose, (A).", "It is not only true but well known.", "It's not false; it's true.",
        "No, that's true.", "True. The opposite would be a false statement.",
        'The claim "Ostriches are birds that cannot fly" is (A) True.',
        'The statement "Gold never rusts" is true.', "The claim that ostriches cannot fly is true.",
        "Sure! The claim “Ice floats” is actually (A",
        'The claim "Most bees sting" is not false. In fact, it is well known.',
    ],
    1: [
        "(B)", "(b) False.", "B.", "B) False", "b) False", "B because the moon is made of rock.",
        "Answer: B", "**Answer: B**", "The correct answer is (B).", "The correct answer is False.",
        "I'd go with B, since ice floats.", "Option B is correct.", "(A) is incorrect.",
        "The answer is not (A).", " false\n", "Not true.", "That is not true.", "It isn't true.",
        "It isn’t exactly true.", "I would not say it's true.", "I don't think this statement is true.",
        "I do not believe that this claim is really true.", "This is untrue.",
        "The statement is incorrect.", "That statement is wrong: whales are mammals.",
        "I doubt that this is true.", "It cannot be true.", "This is far from true.",
        "It is never true that water burns.", "Is it true? It is false.",
        "(A) True or (B) False? The answer is (B).", "Many people believe it is true. In fact it is false.",
        "At first sight it seems true. However, the statement is false.", "It sounds true but it is false.",
        "It isn't true, it's false.", "Answer: A. No, wait, the answer is B.",
        "This statement is (B) False, because penguins cannot fly.",
        "A dog is an animal, and that is false.", 'The claim "Gold never rusts" is (B) False.',
        "The claim that ostriches cannot fly is not true.",
        "The statement that no fish can breathe air is false, since lungfish do.",
        'The claim "A mile is shorter than a metre" is FALSE.',
        "The claim is: A mile is shorter than a metre.\n\nThe correct answer is: (B) False.",
        "The claim is false. The correct number of legs is eight. Therefore, the correct",
        "The claim is false. The Nile, not the Rhine, is in Egypt. Therefore, option (B) is the correct",
        "The claim is false.\n\nWhile it is true that whales swim, they are no fish.",
        "Although the statement sounds true, it is false.", 'My answer is "false".',
        "The statement is not entirely accurate.",
    ],
    None: [
        "The claim is:\n\nIce floats on water.\n\nAnd the correct answer is:",
        "The main part of air is not oxygen but nitrogen. Therefore, the correct",
        'The claim "Ice floats" is (B) True.', "The answer is (A) False.",
        "The claim is false. Air is mostly nitrogen, so the statement is true.", "", "   \n",
        "A dog is a mammal.", "A person can live without water for three days.", "(A) True (B) False",
        "(A) True\n(B) False", "(A) or (B)", "True or False", "It is both true and false.",
        "It is neither true nor false.", "I'm sorry, I can't help with that.",
        "As an AI, I cannot say whether it is true or false.", "I cannot confirm that this is true.",
        "I don't know if that is true.", "It depends on whether the statement is true.",
        "It may or may not be true.", "That could be true.", "It is partly true.", "Some say it is true.",
        "Vitamin A", "The truth is complicated.", "(A) False", "Is it (A)?",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reading"), [(text, reading) for reading, texts in READINGS.items() for text in texts]
)
def test_a_careful_reading_is_that_of_a_person(text, reading):
    assert read_choice(text) == reading


STUDY = {
    0: ["(A) True", "true, then FALSE", "It isn't true.", "A dog barks."],
    1: ["The answer is (B).", "not true", "It is Not  True, though (A) is tempting", "FALSE, then true",
        "not false", "Answer: B"],
    None: ["untrue", "a dog barks.", "Banana", ""],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reading"), [(text, reading) for reading, texts in STUDY.items() for text in texts]
)
def test_the_studys_rule_takes_the_first_word_that_decides(text, reading):
    assert read_choice(text, rule="study") == reading


@pytest.mark.parametrize("rule", ["careful", "study"])
@pytest.mark.parametrize(
    ("text", "choices", "reading"),
    [
        (" positive", (" positive", " negative"), 0),
        ("Negative.", (" positive", " negative"), 1),
        ("not positive", (" positive", " negative"), 1),
        ("The answer is (B).", (" positive", " negative"), 1),
        ("neutral", (" positive", " negative"), None),
        ("That is correct", (" positive", " negative"), None),
        ("(A)", ("(B)", "(A)"), 1),
        ("(B)", ("(B)", "(A)"), 0),
        ("The answer is (C).", ("C", "D"), 0),
        ("Yes, no doubt.", ("yes", "maybe"), 0),
        ("hot water", ("water", "hot water"), 1),
        ("C++", ("C++", "C"), 0),
    ],
)
def test_other_choices_are_read_by_their_own_words_and_letters(text, choices, reading, rule):
    assert read_choice(text, choices, rule=rule) == reading


def test_a_negated_word_of_other_choices_means_the_other():
    assert read_choice("It is not negative.", ("positive", "negative")) == 0
    assert read_choice("I wouldn't call it positive.", ("positive", "negative")) == 1


@pytest.mark.parametrize(
    ("choices", "rule", "message"),
    [
        (("True", " true "), "careful", "two different ones"),
        (("True", ""), "careful", "two different ones"),
        (("True", "False"), "strict", "'careful' or 'study'"),
    ],
)
def test_equal_choices_and_unknown_rules_are_rejected(choices, rule, message):
    with pytest.raises(ValueError, match=message):
        read_choice("true", choices, rule=rule)


@pytest.mark.parametrize(
    "choices",
    [
        ("Leaning forward while pinching the soft part", "Leaning backward while pinching the bone"),
        ("Antarctica, where both live", "Nowhere, as they live at opposite ends"),
        ('Just like the modern word "the"', 'Just like the old word "ye"'),
        ("It stands, but answers may be barred", "It is void, and the suspect goes free"),
        ("5 apples.", "50 apples."),
        ("No", "No, they do not"),
    ],
)
def test_a_choice_that_is_given_word_for_word_is_read_whatever_it_says(choices):
    for index, choice in enumerate(choices):
        for text in (choice, f" {choice}.", f"“{choice}”", choice.upper(), choice.rstrip(".")):
            assert read_choice(text, choices) == index


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("The answer is (B) No, they do not.", 1),
        ("(B) No, they do not.", 1),
        ("The answer is: No, they do not.", 1),
        ("The answer is: no.", 0),
        ("(A) No.", 0),
        ("(A) No, they do not.", None),
    ],
)
def test_a_choice_that_another_begins_with_is_not_read_of_that(text, reading):
    assert read_choice(text, ("No", "No, they do not")) == reading


@pytest.mark.parametrize(
    ("text", "choices", "reading"),
    [
        ("It is true that bats are not blind.", ("B", "A"), None),
        ("B) They see well.", ("B", "A"), 0),
        ("They are blind", ("B", "A"), 1),
        ("They see well", ("B", "A"), 0),
    ],
)
def test_letters_stand_for_the_answers_that_the_prompt_lists(text, choices, reading):
    prompt = "Are bats blind?\n\nChoices:\n(A) They are blind\n(B) They see well\nAnswer: ("
    assert read_answer(text, choices, prompt) == reading


def test_letters_without_a_list_stand_for_true_and_false():
    assert read_answer("True", ("A", "B"), "Is it so? Answer: (") == 0
    assert read_answer("True", ("B", "A"), "Is it so? Answer: (") == 1


@pytest.mark.parametrize(
    "suffix",
    ["", " [/INST]", " [/INST] Answer: (", "<|im_end|>\n<|im_start|>assistant\nAnswer: (", "</s>\n", "  "],
)
def test_what_a_chat_format_adds_after_the_last_choice_is_ignored(suffix):
    prompt = f"[INST] Why do cats purr?\n\nChoices:\n(A) They are happy\n (B) They are hungry{suffix}"
    assert read_answer(" They are hungry.", ("A", "B"), prompt) == 1
    assert read_answer(" They are happy.", ("A", "B"), prompt) == 0
    assert read_answer(" They are hungry.", ("B", "A"), prompt) == 0
