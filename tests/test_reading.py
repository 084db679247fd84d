"""Answers in words, each with the reading that a person gave it before any code ran."""

import pytest

from tl_steer._read_choice import read_answer, read_choice

HARD = [
    ("(A)", 0),
    ("(B)", 1),
    ("(A) True", 0),
    ("(b) False.", 1),
    ("A", 0),
    ("B.", 1),
    ("A. True", 0),
    ("B) False", 1),
    ("b) False", 1),
    ("A: because dogs do bark.", 0),
    ("B because the moon is made of rock.", 1),
    ("Answer: B", 1),
    ("Answer: (A) True. Dogs are mammals.", 0),
    ("**Answer: B**", 1),
    ("The answer is A.", 0),
    ("The correct answer is (B).", 1),
    ("The correct answer is False.", 1),
    ("I would choose option A.", 0),
    ("I'd go with B, since ice floats.", 1),
    ("Option B is correct.", 1),
    ("(A) is incorrect.", 1),
    ("(B) is wrong, so it must be (A).", 0),
    ("The answer is not (A).", 1),
    ("True", 0),
    (" false\n", 1),
    ("TRUE!", 0),
    ("“True”, of course.", 0),
    ("Not true.", 1),
    ("That is not true.", 1),
    ("It isn't true.", 1),
    ("It isn’t exactly true.", 1),
    ("I would not say it's true.", 1),
    ("I don't think this statement is true.", 1),
    ("I do not believe that this claim is really true.", 1),
    ("This is not false.", 0),
    ("The claim is not untrue.", 0),
    ("This is untrue.", 1),
    ("The statement is incorrect.", 1),
    ("That's correct.", 0),
    ("That statement is wrong: whales are mammals.", 1),
    ("I doubt that this is true.", 1),
    ("There is no doubt that this is true.", 0),
    ("It cannot be true.", 1),
    ("This is far from true.", 1),
    ("It is never true that water burns.", 1),
    ("True or false? True.", 0),
    ("Is it true? It is false.", 1),
    ("(A) True or (B) False? The answer is (B).", 1),
    ("True. Some people say it is false, but they have never seen one.", 0),
    ("Many people believe it is true. In fact it is false.", 1),
    ("At first sight it seems true. However, the statement is false.", 1),
    ("It sounds true but it is false.", 1),
    ("If I had to choose, (A).", 0),
    ("It is not only true but well known.", 0),
    ("It isn't true, it's false.", 1),
    ("It's not false; it's true.", 0),
    ("No, that's true.", 0),
    ("Answer: A. No, wait, the answer is B.", 1),
    ("True. The opposite would be a false statement.", 0),
    ("This statement is (B) False, because penguins cannot fly.", 1),
    ("A dog is an animal, and that is false.", 1),
    # as larger models answer: the claim repeated, with words of its own, and sometimes cut off
    ('The claim "Ostriches are birds that cannot fly" is (A) True.', 0),
    ('The statement "Gold never rusts" is true.', 0),
    ('The claim "Gold never rusts" is (B) False.', 1),
    ("The claim that ostriches cannot fly is true.", 0),
    ("The claim that ostriches cannot fly is not true.", 1),
    ("The statement that no fish can breathe air is false, since lungfish do.", 1),
    ('The claim "A mile is shorter than a metre" is FALSE.', 1),
    ("The claim is: A mile is shorter than a metre.\n\nThe correct answer is: (B) False.", 1),
    ("The claim is false. The correct number of legs is eight. Therefore, the correct", 1),
    ("The claim is false. The Nile, not the Rhine, is in Egypt. Therefore, option (B) is the correct", 1),
    ("The claim is false.\n\nWhile it is true that whales swim, they are no fish.", 1),
    ("Although the statement sounds true, it is false.", 1),
    ("Sure! The claim “Ice floats” is actually (A", 0),
    ('My answer is "false".', 1),
    ('The claim "Most bees sting" is not false. In fact, it is well known.', 0),
    ("The statement is not entirely accurate.", 1),
    ("The claim is:\n\nIce floats on water.\n\nAnd the correct answer is:", None),
    ("The main part of air is not oxygen but nitrogen. Therefore, the correct", None),
    ('The claim "Ice floats" is (B) True.', None),
    ("The answer is (A) False.", None),
    ("The claim is false. Air is mostly nitrogen, so the statement is true.", None),
    # no verdict
    ("", None),
    ("   \n", None),
    ("A dog is a mammal.", None),
    ("A person can live without water for three days.", None),
    ("(A) True (B) False", None),
    ("(A) True\n(B) False", None),
    ("(A) or (B)", None),
    ("True or False", None),
    ("It is both true and false.", None),
    ("It is neither true nor false.", None),
    ("I'm sorry, I can't help with that.", None),
    ("As an AI, I cannot say whether it is true or false.", None),
    ("I cannot confirm that this is true.", None),
    ("I don't know if that is true.", None),
    ("It depends on whether the statement is true.", None),
    ("It may or may not be true.", None),
    ("That could be true.", None),
    ("It is partly true.", None),
    ("Some say it is true.", None),
    ("Vitamin A", None),
    ("The truth is complicated.", None),
    ("(A) False", None),
    ("Is it (A)?", None),
]


@pytest.mark.parametrize(("text", "reading"), HARD)
def test_a_careful_reading_is_that_of_a_person(text, reading):
    assert read_choice(text) == reading


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("(A) True", 0),
        ("The answer is (B).", 1),
        ("not true", 1),
        ("It is Not  True, though (A) is tempting", 1),
        ("FALSE, then true", 1),
        ("true, then FALSE", 0),
        ("untrue", None),
        ("It isn't true.", 0),
        ("not false", 1),
        ("A dog barks.", 0),
        ("a dog barks.", None),
        ("Answer: B", 1),
        ("Banana", None),
        ("", None),
    ],
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


def test_a_choice_that_another_begins_with_is_not_read_of_that():
    choices = ("No", "No, they do not")
    assert read_choice("The answer is (B) No, they do not.", choices) == 1
    assert read_choice("(B) No, they do not.", choices) == 1
    assert read_choice("The answer is: No, they do not.", choices) == 1
    assert read_choice("The answer is: no.", choices) == read_choice("(A) No.", choices) == 0
    assert read_choice("(A) No, they do not.", choices) is None


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
