"""Notes and questions, made for this: what people note, and how they ask for it later.

`REWORDED`: a question shares no telling word with its note (written by hand, so that words alone
rarely lead there). `REPEATED`: it uses a word of the note, as people often do. `others` makes notes
that answer none of them.
"""

from __future__ import annotations

import random

REWORDED: tuple[tuple[str, str], ...] = (
    ("The physician told Ana to eat less salt.", "What did the doctor say about her diet?"),
    ("Our flat gets no sun in winter.", "Is the apartment dark during the cold season?"),
    ("The cab fare to the terminal was forty euros.", "How much did the taxi to the airport cost?"),
    ("Milo was put down at the vet on Sunday.", "When did the dog die?"),
    ("Her offspring attend kindergarten in the village.", "Where do the children go to school?"),
    ("The engine will not start when it is freezing.", "Why has the car trouble in the cold?"),
    ("We ran out of petrol near the border.", "Where did the fuel run dry?"),
    ("The tenants quarrel about noise at night.", "What do the neighbours argue over?"),
    ("He quit after the boss cut his wages.", "Why did he leave the job?"),
    ("The bakery shuts at noon on Saturdays.", "Until what time can I buy bread on the weekend?"),
    ("Ines cannot digest dairy.", "Who should not drink milk?"),
    ("The laptop overheats while compiling.", "Which computer gets too hot?"),
    ("Grandma's ring is in the bank's vault.", "Where is the jewellery kept?"),
    ("The ferry was cancelled because of the storm.", "Why did the boat not sail?"),
    ("The film bored everyone except Karl.", "Who liked the movie?"),
    ("A thief took her purse on the tram.", "What was stolen on public transport?"),
    ("The roof leaks above the nursery.", "Where does rain come into the house?"),
    ("The jury found the banker guilty.", "What was the verdict in the trial?"),
    ("Peanuts make Tom's throat swell.", "What is he allergic to?"),
    ("The match ended in a draw after overtime.", "Who won the football game?"),
    ("Rent rises by nine percent in spring.", "How much more will housing cost?"),
    ("The pilot landed on the river unharmed.", "Did the plane crash kill anybody?"),
    ("Lena is expecting twins in autumn.", "Who is pregnant?"),
    ("The well dried up last summer.", "Is there enough water on the farm?"),
    ("He swore never to touch liquor again.", "Did he stop drinking alcohol?"),
    ("The key is under the flowerpot.", "How do I get in when nobody is home?"),
    ("Our supplier went bankrupt.", "Which firm is insolvent?"),
    ("The patient's temperature rose to forty degrees.", "Did he have a fever?"),
    ("The choir rehearses in the crypt.", "Where do the singers practise?"),
    ("Wolves killed six lambs last night.", "What happened to the sheep?"),
    ("The bridge is closed to lorries.", "Can trucks cross the river there?"),
    ("She paid the invoice twice by mistake.", "Which bill was settled double?"),
    ("The telescope needs a new mirror.", "What is broken at the observatory?"),
    ("The mayor resigned over the bribe.", "Why did the head of the town step down?"),
    ("They wed in secret in Lisbon.", "Where did the couple marry?"),
    ("The seedlings froze in May.", "Why did the young plants die?"),
    ("The recipe wants twice as much sugar.", "How can the cake be made sweeter?"),
    ("The server was unreachable for an hour.", "How long did the outage last?"),
    ("Their attorney advises against settling.", "What does the lawyer recommend?"),
    ("The carpet is stained with red wine.", "What was spilled on the floor covering?"),
    ("He limps since the motorcycle accident.", "Why does he have trouble walking?"),
    ("The novel was translated into nine languages.", "In how many tongues can one read the book?"),
    ("The queue outside the museum took two hours.", "How long did we wait for the exhibition?"),
    ("My password manager forgot everything.", "Why can I not log in anywhere?"),
    ("The glacier lost a third of its ice.", "How much has melted in the mountains?"),
    ("The infant sleeps only in the pram.", "Where does the baby calm down?"),
    ("The burglar alarm went off at dawn.", "What woke us early in the morning?"),
    ("The cellist broke her wrist.", "Which musician is injured?"),
    ("The garage wants six hundred for the brakes.", "What does the car repair cost?"),
    ("The hamlet has no phone reception.", "Can one make calls from the village?"),
    ("He inherited the vineyard from his uncle.", "Who owned the winery before?"),
    ("The elevator is stuck on the third floor.", "Why must we take the stairs?"),
    ("Swimming is forbidden because of the current.", "May one bathe in the river?"),
    ("The intern deleted the production database.", "How was the customer data lost?"),
    ("The soup was too spicy for the guests.", "What was wrong with the starter?"),
    ("The dentist pulled two teeth.", "What was done to his mouth?"),
    ("The lecture was moved to Thursday.", "On which day is the talk now?"),
    ("The hikers lost their way in the fog.", "Why did the walkers get lost?"),
    ("The parcel came without the charger.", "What was missing from the delivery?"),
    ("The orchard yields plums every second year.", "How often is there fruit?"),
)
REPEATED: tuple[tuple[str, str], ...] = (
    ("Kassandra's birthday is on 9 June.", "When is Kassandra's birthday?"),
    ("The wifi password of the cabin is on the fridge.", "Where is the wifi password?"),
    ("Order number 88213 was sent back.", "What happened to order 88213?"),
    ("The Zephyr project ends in March.", "When does the Zephyr project end?"),
    ("The boiler was serviced by Hartmann.", "Who serviced the boiler?"),
    ("Invoice 4471 is still open.", "Is invoice 4471 paid?"),
    ("The printer on floor two is called Gutenberg.", "What is the printer called?"),
    ("Rosalind plays the oboe.", "Which instrument does Rosalind play?"),
    ("The compost needs more straw.", "What does the compost need?"),
    ("The Uppsala office has eleven desks.", "How many desks are in Uppsala?"),
    ("The backup runs at three in the morning.", "When does the backup run?"),
    ("The red folder holds the contracts.", "What is in the red folder?"),
    ("Gate codes change every Monday.", "How often do gate codes change?"),
    ("The tuba belongs to the school.", "Whose is the tuba?"),
    ("Version 3.2 broke the importer.", "Which version broke the importer?"),
    ("Ottilie lives in Graz now.", "Where does Ottilie live?"),
    ("The sauna is reserved on Fridays.", "When is the sauna reserved?"),
    ("The lease of the crane ends in May.", "When does the lease of the crane end?"),
    ("The choir's tenor is called Benedikt.", "What is the tenor called?"),
    ("The east fence needs paint.", "Which fence needs paint?"),
)

_WHO = (
    "Jonas",
    "the committee",
    "our team",
    "Mara",
    "the gardener",
    "an auditor",
    "Felix",
    "the clerk",
    "my aunt",
    "the landlord",
    "Priya",
    "the coach",
)
_DID = (
    "reviewed",
    "postponed",
    "painted",
    "bought",
    "measured",
    "forgot",
    "described",
    "sold",
    "cleaned",
    "compared",
    "sketched",
    "counted",
    "returned",
    "wrapped",
)
_WHAT = (
    "the budget",
    "a wooden bench",
    "the old maps",
    "six lanterns",
    "the survey",
    "a bicycle",
    "the minutes",
    "two ladders",
    "the stamps",
    "a violin case",
    "the blueprints",
    "a tent",
    "the spreadsheets",
    "three chairs",
    "the curtains",
    "an anchor",
)
_WHEN = (
    "in January",
    "before lunch",
    "on Wednesday",
    "after the concert",
    "last week",
    "during the break",
    "at the station",
    "in the basement",
    "without asking",
)


def others(count: int, seed: int = 5) -> list[str]:
    """Return notes about other things, each once."""
    dice = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        text = " ".join(dice.choice(words) for words in (_WHO, _DID, _WHAT, _WHEN))
        found[text[0].upper() + text[1:] + "."] = None
    return list(found)
