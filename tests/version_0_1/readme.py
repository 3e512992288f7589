import torch
from avalanche_cetl import CETLStrategy, CICNN, CoupledModel, ModuleEncoder, transfer_benchmark
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)
split = train_test_split(images, digits.target, test_size=0.3, random_state=0)
train, test = (split[0], split[2]), (split[1], split[3])
benchmark = transfer_benchmark(train, test, labels_per_class=10)  # the other labels are hidden

pretrained = CICNN(num_classes=10, input_shape=(1, 8, 8), width=0.25)  # your source network here
source = ModuleEncoder(pretrained, input_shape=(1, 8, 8))  # or TimmEncoder("resnet50")
target = CICNN(num_classes=10, input_shape=(1, 8, 8), width=0.125)  # any classifier will do
model = CoupledModel.build(source, target, input_shape=(1, 8, 8))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
strategy = CETLStrategy(model=model, optimizer=optimizer, train_mb_size=32, train_epochs=5)
for experience in benchmark.train_stream:
    strategy.train(experience)
print(strategy.eval(benchmark.test_stream))
