"""The transformer: an encoder over the features and a decoder from queries to objects (Zhu et al. 2020)."""

from torch import Tensor, nn

from deform_attn.detr.config.detector import TransformerConfig
from deform_attn.detr.model.attention import build_attention
from deform_attn.detr.model.heads import BoxHead, ClassHead, PointBoxHead, Prediction
from deform_attn.detr.model.position import MLP, sine_encoding
from deform_attn.detr.model.proposals import FixedProposals, Proposals
from deform_attn.detr.model.pyramid import Pyramid
from deform_attn.detr.model.queries import FixedQueries, Queries, Start


class Residual(nn.Module):
    """What closes each sub-layer: dropout, the sum with the sub-layer's input, and LayerNorm."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return `[N, Q, C]` from the sub-layer's input and output."""
        closed: Tensor = self.norm(before + self.dropout(after))
        return closed


def feedforward(config: TransformerConfig) -> nn.Sequential:
    """Return the perceptron of a layer."""
    return nn.Sequential(
        nn.Linear(config.width, config.feedforward_dim),
        nn.ReLU(inplace=True),
        nn.Dropout(config.dropout),
        nn.Linear(config.feedforward_dim, config.width),
    )


class EncoderLayer(nn.Module):
    """Every pixel attends to the features around it."""

    def __init__(self, config: TransformerConfig, num_levels: int) -> None:
        super().__init__()
        self.attention = build_attention(config, num_levels)
        self.attention_residual = Residual(config.width, config.dropout)
        self.feedforward = feedforward(config)
        self.feedforward_residual = Residual(config.width, config.dropout)

    def forward(self, features: Tensor, pyramid: Pyramid) -> Tensor:
        """Return the new features `[N, S, C]`."""
        read = self.attention(features, pyramid.position, pyramid.centres, features, pyramid)
        features = self.attention_residual(features, read)
        return self.feedforward_residual(features, self.feedforward(features))


class DecoderLayer(nn.Module):
    """Queries attend to one another, then to the features."""

    def __init__(self, config: TransformerConfig, num_levels: int) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(
            config.width, config.num_heads, dropout=config.dropout, batch_first=True
        )
        self.self_residual = Residual(config.width, config.dropout)
        self.attention = build_attention(config, num_levels)
        self.attention_residual = Residual(config.width, config.dropout)
        self.feedforward = feedforward(config)
        self.feedforward_residual = Residual(config.width, config.dropout)

    def forward(self, content: Tensor, position: Tensor, boxes: Tensor, features: Tensor, pyramid: Pyramid) -> Tensor:
        """Return the queries' new content `[N, Q, C]` from what they hold and where they look."""
        placed = content + position
        content = self.self_residual(content, self.self_attention(placed, placed, content, need_weights=False)[0])
        read = self.attention(content, position, boxes, features, pyramid)
        content = self.attention_residual(content, read)
        return self.feedforward_residual(content, self.feedforward(content))


class Decoder(nn.Module):
    """The decoder layers, each with its heads; with refinement each starts from the boxes of the one before."""

    def __init__(self, config: TransformerConfig, num_levels: int, num_classes: int) -> None:
        super().__init__()
        depth, width = config.decoder_layers, config.width
        self.refine = config.refine
        self.periods, self.temperature = config.position_periods, config.position_temperature
        fixed = config.query_position == "fixed"
        self.position = None if fixed else MLP(2 * width, width, width, num_layers=2)
        self.layers = nn.ModuleList(DecoderLayer(config, num_levels) for _ in range(depth))
        self.class_heads = nn.ModuleList(ClassHead(width, num_classes) for _ in range(depth))
        box_heads = [PointBoxHead(width) if fixed else BoxHead(width) for _ in range(depth)]
        self.box_heads = nn.ModuleList(box_heads)
        if fixed and not config.two_stage:  # the heads that start from points begin with small boxes
            for head in box_heads[: 1 if config.refine else depth]:
                nn.init.constant_(head.mlp[-1].bias[2:], -2.0)  # type: ignore[index]

    def forward(self, start: Start, features: Tensor, pyramid: Pyramid) -> list[Prediction]:
        """Return the prediction of each layer."""
        predictions = []
        content, boxes, position, _ = start
        for layer, class_head, box_head in zip(self.layers, self.class_heads, self.box_heads, strict=True):
            if self.position is not None:
                encoded = sine_encoding(boxes, content.shape[-1] // 2, self.periods, self.temperature)  # [N, Q, 2C]
                position = self.position(encoded.to(content.dtype))
            content = layer(content, position, boxes, features, pyramid)
            prediction = Prediction(class_head(content), box_head(content, boxes))
            predictions.append(prediction)
            if self.refine:
                boxes = prediction.boxes.detach()
        return predictions


class Transformer(nn.Module):
    """Encoder, choice of queries, decoder."""

    def __init__(self, config: TransformerConfig, num_levels: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(EncoderLayer(config, num_levels) for _ in range(config.encoder_layers))
        fixed = config.query_position == "fixed"
        if config.two_stage and fixed:
            self.proposals: nn.Module = FixedProposals(config, num_classes)
        elif config.two_stage:
            self.proposals = Proposals(config.width, num_classes, config.num_queries, config.proposal_size)
        else:
            self.queries = (FixedQueries if fixed else Queries)(config.num_queries, config.width)
        self.two_stage = config.two_stage
        self.decoder = Decoder(config, num_levels, num_classes)

    def forward(self, features: Tensor, pyramid: Pyramid) -> tuple[list[Prediction], Prediction | None]:
        """Return the prediction of each decoder layer and, from a two-stage detector, the proposals'."""
        for layer in self.encoder:
            features = layer(features, pyramid)
        start: Start = (self.proposals if self.two_stage else self.queries)(features, pyramid)
        return self.decoder(start, features, pyramid), start.prediction
