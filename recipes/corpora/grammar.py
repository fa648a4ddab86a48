"""Make a synthetic De-En corpus with a small grammar, for places where nothing can be downloaded. It is not a real text.

    python recipes/corpora/grammar.py --out DIR [--pairs N] [--seed S] [--merges N] [--heldout N]

Each sentence is drawn once, from some 200 German words with their forms, and written down in both languages, so a
translation is right by construction. German is what makes it a task: the verb stands second in a main clause, also after
an adverb or a clause, and last in a subordinate or relative clause; separable verbs come apart (`er ruft sie an`) and
together again (`weil er sie anruft`); infinitives and participles go to the end; pronouns move before adverbs; articles,
adjectives and pronouns show gender, number and case. The same seed gives the same pairs on every machine.

Two examples::

    python recipes/corpora/grammar.py --out data/grammar
    python recipes/corpora/grammar.py --out data/grammar-tiny --pairs 2000 --seed 7 --merges 300
"""

import argparse
import random
import re
from collections import Counter
from dataclasses import dataclass, replace

import parallel_text

# Tables: entries apart by `|`, fields by spaces, `_` for a space inside a field.
# German, gender, German plural, English, English plural
ANIMATE = """
Mann m Männer man men|Frau f Frauen woman women|Kind n Kinder child children|Lehrer m Lehrer teacher teachers|
Arzt m Ärzte doctor doctors|Freundin f Freundinnen friend friends|Hund m Hunde dog dogs|Katze f Katzen cat cats|
Pferd n Pferde horse horses|Vogel m Vögel bird birds|Schwester f Schwestern sister sisters|Gast m Gäste guest guests|
Bruder m Brüder brother brothers|Mutter f Mütter mother mothers|Tochter f Töchter daughter daughters|Sohn m Söhne son sons|
König m Könige king kings|Bäcker m Bäcker baker bakers|Maler m Maler painter painters|Mädchen n Mädchen girl girls|
Richterin f Richterinnen judge judges|Bäuerin f Bäuerinnen farmer farmers|Schaf n Schafe sheep sheep|Dieb m Diebe thief thieves
"""
INANIMATE = """
Buch n Bücher book books|Brief m Briefe letter letters|Tisch m Tische table tables|Stuhl m Stühle chair chairs|
Lampe f Lampen lamp lamps|Fenster n Fenster window windows|Tür f Türen door doors|Haus n Häuser house houses|
Garten m Gärten garden gardens|Auto n Autos car cars|Zug m Züge train trains|Schiff n Schiffe ship ships|
Brücke f Brücken bridge bridges|Straße f Straßen street streets|Stadt f Städte city cities|Dorf n Dörfer village villages|
Schule f Schulen school schools|Kirche f Kirchen church churches|Bild n Bilder picture pictures|Apfel m Äpfel apple apples|
Messer n Messer knife knives|Schlüssel m Schlüssel key keys|Koffer m Koffer suitcase suitcases|Uhr f Uhren clock clocks|
Flasche f Flaschen bottle bottles|Zeitung f Zeitungen newspaper newspapers|Baum m Bäume tree trees|Insel f Inseln island islands|
Blume f Blumen flower flowers|Berg m Berge mountain mountains|Fluss m Flüsse river rivers|Wald m Wälder forest forests
"""
ADJECTIVES = """
alt old|jung young|groß big|klein small|schön beautiful|neu new|rot red|blau blue|grün green|schwarz black|weiß white|gut good|
schlecht bad|schnell fast|langsam slow|reich rich|arm poor|stark strong|schwach weak|klug clever|still quiet|fremd strange|
warm warm|kalt cold|lang long|kurz short|schwer heavy|leicht light|ehrlich honest|leer empty
"""
# separable prefix or -, then infinitive, third person and participle without it, and the same three in English
TRANSITIVE = """
- sehen sieht gesehen see sees seen|- lesen liest gelesen read reads read|- kaufen kauft gekauft buy buys bought|
- finden findet gefunden find finds found|- suchen sucht gesucht seek seeks sought|- nehmen nimmt genommen take takes taken|
- tragen trägt getragen carry carries carried|- lieben liebt geliebt love loves loved|- malen malt gemalt paint paints painted|
- brauchen braucht gebraucht need needs needed|- kennen kennt gekannt know knows known|- holen holt geholt fetch fetches fetched|
- vergessen vergisst vergessen forget forgets forgotten|- verkaufen verkauft verkauft sell sells sold|
- besuchen besucht besucht visit visits visited|- verlieren verliert verloren lose loses lost|
an rufen ruft gerufen call calls called|auf machen macht gemacht open opens opened|zu machen macht gemacht close closes closed|
ab holen holt geholt collect collects collected|mit bringen bringt gebracht bring brings brought|
weg werfen wirft geworfen discard discards discarded|ein laden lädt geladen invite invites invited|
auf heben hebt gehoben lift lifts lifted|aus wählen wählt gewählt choose chooses chosen|
vor stellen stellt gestellt present presents presented|um tauschen tauscht getauscht exchange exchanges exchanged
"""
WITH_DATIVE = """
- helfen hilft geholfen help helps helped|- danken dankt gedankt thank thanks thanked|zu hören hört gehört heed heeds heeded|
- antworten antwortet geantwortet answer answers answered|- glauben glaubt geglaubt believe believes believed
"""
INTRANSITIVE = """
- schlafen schläft geschlafen sleep sleeps slept|- arbeiten arbeitet gearbeitet work works worked|
- singen singt gesungen sing sings sung|- lachen lacht gelacht laugh laughs laughed|- warten wartet gewartet wait waits waited|
- tanzen tanzt getanzt dance dances danced|- weinen weint geweint cry cries cried|auf hören hört gehört stop stops stopped|
zu schauen schaut geschaut watch watches watched|ein kaufen kauft gekauft shop shops shopped|
nach denken denkt gedacht ponder ponders pondered|ab waschen wäscht gewaschen wash washes washed
"""
GIVING = """
- geben gibt gegeben give gives given|- zeigen zeigt gezeigt show shows shown|- schenken schenkt geschenkt offer offers offered|
- schicken schickt geschickt send sends sent|zurück geben gibt gegeben return returns returned
"""
SAYING = """
- sagen sagt gesagt say says said|- denken denkt gedacht think thinks thought|- hoffen hofft gehofft hope hopes hoped|
- schreiben schreibt geschrieben write writes written|- träumen träumt geträumt dream dreams dreamt
"""
MODALS = "können kann can|müssen muss must|sollen soll should|dürfen darf may"
ADVERBS = """
heute today|jetzt now|oft often|dort there|hier here|gern gladly|bald soon|manchmal sometimes|morgen tomorrow|allein alone|
endlich finally|zusammen together|wieder again
"""
CONJUNCTIONS = "weil because|wenn if|obwohl although|während while|bevor before|bis until|sobald as_soon_as"
PREPOSITIONS = """
mit with 2|ohne without 1|für for 1|neben beside 2|hinter behind 2|gegen against 1|von from 2|vor in_front_of 2|in in 2|auf on 2|
unter under 2
"""
NUMBERS = "zwei two|drei three|vier four|fünf five|sechs six|sieben seven|acht eight|zehn ten|zwölf twelve"
# nominative, accusative, dative, person; English subject and object
PRONOUNS = "ich mich mir ich i me|er ihn ihm er he him|sie sie ihr er she her|wir uns uns wir we us|sie sie ihnen wir they them"

NOMINATIVE, ACCUSATIVE, DATIVE = range(3)
DER = {  # definite article and relative pronoun: gender or p(lural) -> the three cases
    "m": ("der", "den", "dem"),
    "f": ("die", "die", "der"),
    "n": ("das", "das", "dem"),
    "p": ("die", "die", "den"),
}
EIN = {"m": ("", "en", "em"), "f": ("e", "e", "er"), "n": ("", "", "em"), "p": ("e", "e", "en")}  # ending of ein, kein, mein
AFTER_DER = {"m": ("e", "en", "en"), "f": ("e", "e", "en"), "n": ("e", "e", "en"), "p": ("en", "en", "en")}
AFTER_EIN = {"m": ("er", "en", "en"), "f": ("e", "e", "en"), "n": ("es", "es", "en"), "p": ("en", "en", "en")}
MIXED = (("ein", "a"), ("kein", "no"), ("mein", "my"), ("sein", "his"), ("ihr", "her"))
MOST_PAIRS = 500_000  # far below what the grammar can say, so that a new pair is drawn quickly


def table(text: str) -> list[list[str]]:
    """Rows of fields of a table above."""
    return [[field.replace("_", " ") for field in entry.split()] for entry in text.split("|")]


@dataclass
class Phrase:
    """A noun phrase or pronoun. `person` picks the verb form: `ich`, `er`, or `wir` for every plural."""

    german: tuple[str, ...]  # nominative, accusative, dative
    english: tuple[str, str]  # as subject, as object
    person: str
    gender: str = ""  # m, f, n or p, the form of a relative pronoun; empty for a personal pronoun


@dataclass
class Clause:
    """A clause with its German word order still open; English has one order."""

    subject: Phrase
    finite: str
    prefix: str  # that the finite verb leaves at the end of a main clause, or empty
    middle: list[str]  # objects, adverbs, places
    end: list[str]  # infinitive or participle
    english: list[str]  # all after the subject

    def verb_second(self, front: str = "") -> str:
        """German main clause; `front` takes the first place, which is the subject's otherwise."""
        nominative = self.subject.german[NOMINATIVE]
        start = [front, self.finite, nominative] if front else [nominative, self.finite]
        return " ".join([*start, *self.middle, *self.end, self.prefix])

    def verb_last(self, first: str) -> str:
        """German subordinate or relative clause with its commas; `first` is the conjunction and subject, or the pronoun."""
        return " ".join([",", first, *self.middle, *self.end, self.prefix + self.finite, ","])

    def whole_english(self) -> str:
        """The clause in English."""
        return " ".join([self.subject.english[0], *self.english])


class Grammar:
    """Draws sentence pairs from one seeded generator."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.animate, self.inanimate, self.adjectives = table(ANIMATE), table(INANIMATE), table(ADJECTIVES)
        self.transitive, self.giving, self.saying = table(TRANSITIVE), table(GIVING), table(SAYING)
        self.with_dative, self.intransitive = table(WITH_DATIVE), table(INTRANSITIVE)
        self.modals, self.adverbs, self.conjunctions = table(MODALS), table(ADVERBS), table(CONJUNCTIONS)
        self.prepositions, self.numbers, self.pronouns = table(PREPOSITIONS), table(NUMBERS), table(PRONOUNS)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability

    def noun_phrase(self, nouns: list[list[str]]) -> Phrase:
        """Article or number, up to two adjectives, noun."""
        singular, gender, plural, english, english_plural = self.random.choice(nouns)
        kind = self.random.choices(("der", "ein", "number"), (5, 4, 1))[0]
        stem, article = self.random.choice(MIXED)
        is_plural = kind == "number" or (self.chance(0.3) and (kind, stem) != ("ein", "ein"))
        key = "p" if is_plural else gender
        if kind == "der":
            articles, endings, article = DER[key], AFTER_DER[key], "the"
        elif kind == "ein":
            articles, endings = [stem + ending for ending in EIN[key]], AFTER_EIN[key]
        else:
            number, article = self.random.choice(self.numbers)
            articles, endings = [number] * 3, ("e", "e", "en")
        adjectives = self.random.sample(self.adjectives, self.random.choices((0, 1, 2), (5, 4, 1))[0])
        words = [*(word for _, word in adjectives), english_plural if is_plural else english]
        if article == "a" and re.match("[aeiou]|hon", words[0]):
            article = "an"
        nouns_by_case = [plural if is_plural else singular] * 3
        if is_plural and plural[-1] not in "ns":
            nouns_by_case[DATIVE] += "n"
        german = (
            " ".join([articles[case], *(word + endings[case] for word, _ in adjectives), nouns_by_case[case]])
            for case in (NOMINATIVE, ACCUSATIVE, DATIVE)
        )
        return Phrase(tuple(german), (" ".join([article, *words]),) * 2, "wir" if is_plural else "er", key)

    def phrase(self, nouns: list[list[str]], relative: float = 0.12, pronoun: float = 0.0) -> Phrase:
        """A pronoun, or a noun phrase with or without a relative clause, with these probabilities."""
        if self.chance(pronoun):
            nominative, accusative, dative, person, subject, as_object = self.random.choice(self.pronouns)
            return Phrase((nominative, accusative, dative), (subject, as_object), person)
        head = self.noun_phrase(nouns)
        if not self.chance(relative):
            return head
        if nouns is self.animate:  # the head is the subject of its relative clause
            clause = self.clause(head, plain=True)
            german, english = clause.verb_last(DER[head.gender][NOMINATIVE]), ["that", *clause.english]
        else:  # the head is the object
            subject = self.phrase(self.animate, relative=0, pronoun=0.4)
            clause = self.with_verb(subject, self.random.choice(self.transitive), [], [], [])
            german = clause.verb_last(f"{DER[head.gender][ACCUSATIVE]} {subject.german[NOMINATIVE]}")
            english = ["that", clause.whole_english()]
        return replace(
            head,
            german=tuple(f"{form} {german}" for form in head.german),
            english=tuple(" ".join([form, *english]) for form in head.english),
        )

    def with_verb(self, subject: Phrase, verb: list[str], middle: list[str], english: list[str], adverb: list[str]) -> Clause:
        """A clause in the present, in the perfect, or with a modal verb."""
        prefix, infinitive, third, participle, english_base, english_third, english_participle = verb
        prefix = prefix.replace("-", "")
        forms = {"ich": infinitive.removesuffix("n"), "er": third, "wir": infinitive}
        is_third = subject.person == "er"
        tense = self.random.choices(("present", "perfect", "modal"), (5, 3, 2))[0]
        if tense == "present":
            words = [english_third if is_third else english_base, *english, *adverb]
            return Clause(subject, forms[subject.person], prefix, middle, [], words)
        if tense == "perfect":
            finite = {"ich": "habe", "er": "hat", "wir": "haben"}[subject.person]
            words = ["has" if is_third else "have", english_participle, *english, *adverb]
            return Clause(subject, finite, "", middle, [prefix + participle], words)
        modal, singular, english_modal = self.random.choice(self.modals)
        finite = modal if subject.person == "wir" else singular
        return Clause(subject, finite, "", middle, [prefix + infinitive], [english_modal, english_base, *english, *adverb])

    def clause(self, subject: Phrase | None = None, plain: bool = False, adverb: bool = True) -> Clause:
        """A clause of any valency; a `plain` one has no relative clauses, so that they do not nest."""
        relative = 0.0 if plain else 0.12
        subject = subject or self.phrase(self.animate, relative, pronoun=0.35)
        verbs = self.random.choices((self.intransitive, self.transitive, self.with_dative, self.giving), (2, 5, 2, 2))[0]
        objects: list[tuple[Phrase, int]] = []
        english: list[str] = []
        if verbs is self.transitive:
            is_animate = self.chance(0.35)
            seen = self.phrase(self.animate, 0, 0.5) if is_animate else self.phrase(self.inanimate, relative)
            objects = [(seen, ACCUSATIVE)]
        elif verbs is self.with_dative:
            objects = [(self.phrase(self.animate, relative, 0.4), DATIVE)]
        elif verbs is self.giving:
            objects = [(self.phrase(self.animate, relative, 0.4), DATIVE), (self.phrase(self.inanimate, relative), ACCUSATIVE)]
        for thing, case in reversed(objects):
            english += (["to"] if len(objects) == 2 and case == DATIVE else []) + [thing.english[1]]
        pronouns = [thing.german[case] for thing, case in objects if not thing.gender]
        nouns = [thing.german[case] for thing, case in objects if thing.gender]
        adverbs = [self.random.choice(self.adverbs)] if adverb and self.chance(0.3) else []
        places = []
        if self.chance(0.25):
            german, preposition, case = self.random.choice(self.prepositions)
            place = self.phrase(self.inanimate, relative)
            places, english = [f"{german} {place.german[int(case)]}"], [*english, f"{preposition} {place.english[1]}"]
        middle = [*pronouns, *(word for word, _ in adverbs), *nouns, *places]
        return self.with_verb(subject, self.random.choice(verbs), middle, english, [word for _, word in adverbs])

    def sentence(self) -> parallel_text.Pair:
        """One (German, English) pair with capitals and punctuation."""
        kind = self.random.choices(("main", "adverb", "after", "before", "that"), (4, 2, 2, 1, 2))[0]
        if kind == "main":
            main = self.clause()
            german, english = main.verb_second(), main.whole_english()
        elif kind == "adverb":
            main = self.clause(adverb=False)
            adverb, english_adverb = self.random.choice(self.adverbs)
            german, english = main.verb_second(adverb), f"{english_adverb} {main.whole_english()}"
        elif kind == "that":
            main = self.with_verb(self.phrase(self.animate, 0, 0.35), self.random.choice(self.saying), [], [], [])
            side = self.clause()
            german = f"{main.verb_second()} {side.verb_last('dass ' + side.subject.german[NOMINATIVE])}"
            english = f"{main.whole_english()} that {side.whole_english()}"
        else:
            main, side = self.clause(plain=True), self.clause(plain=True)
            conjunction, english_conjunction = self.random.choice(self.conjunctions)
            german_side = side.verb_last(f"{conjunction} {side.subject.german[NOMINATIVE]}")
            english_side = f"{english_conjunction} {side.whole_english()}"
            if kind == "after":
                german, english = f"{main.verb_second()} {german_side}", f"{main.whole_english()} {english_side}"
            else:
                german = main.verb_second(german_side.removeprefix(", "))
                english = f"{english_side} , {main.whole_english()}"
        return write_down(german), write_down(english)


def write_down(words: str) -> str:
    """A sentence as it is written: contractions, commas once and never at the end, a capital, a full stop."""
    text = re.sub(r"\b(in|von) dem\b", lambda found: {"in": "im", "von": "vom"}[found.group(1)], " ".join(words.split()))
    text = re.sub(r" ?,( ,)*", ",", text).strip(" ,")
    return f"{text[0].upper()}{text[1:]}."


def draw(pairs: int, seed: int) -> list[parallel_text.Pair]:
    """`pairs` different (German, English) pairs."""
    if not 1 <= pairs <= MOST_PAIRS:
        raise parallel_text.CorpusError(f"--pairs {pairs:,} is not between 1 and {MOST_PAIRS:,}")
    grammar, drawn = Grammar(seed), {}
    while len(drawn) < pairs:
        drawn[grammar.sentence()] = None
    return list(drawn)


def make(args: argparse.Namespace) -> parallel_text.Corpus:
    """Draw, tokenize and hold out."""
    parallel_text.say(f"drawing and tokenizing {args.pairs:,} pairs ...")
    pairs = parallel_text.tokenize(draw(args.pairs, args.seed), "de", "en", lowercase=True)
    dropped: Counter[str] = Counter()
    heldout = min(1000, len(pairs) // 10) if args.heldout is None else args.heldout
    return parallel_text.Corpus(
        name="grammar",
        source_lang="de",
        target_lang="en",
        origin=f"drawn by recipes/corpora/grammar.py with seed {args.seed}",
        licence="that of this repository",
        tokenizer=parallel_text.tokenizer_name(),
        lowercase=True,
        splits=parallel_text.hold_out(pairs, heldout, dropped),
        merges=args.merges,
        note="synthetic: sentences of a small grammar, not real text; scores say nothing about real translation",
        dropped=dropped,
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--pairs", type=int, default=30000, metavar="N", help="pairs of train, valid and test together (default 30000)")
    add("--seed", type=int, default=1, metavar="S", help="another seed draws other sentences (default 1)")
    add("--heldout", type=int, metavar="N", help="pairs of valid, and of test (default: a tenth, at most 1000)")
    add("--merges", type=int, default=1000, metavar="N", help="joint BPE merges (default 1000)")
    return result


if __name__ == "__main__":
    parallel_text.run(make, parser())
